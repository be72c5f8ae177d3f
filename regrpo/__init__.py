"""What the stages share, and the `regrpo` commands. Nothing here imports a stage; heavy libraries are imported where used."""

__version__ = "0.1.0"
