"""What the stages share, and the `regrpo` commands.

Heavy libraries are imported where they are used.
"""

__version__ = "0.1.0"
