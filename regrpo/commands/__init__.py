"""The commands of `regrpo`.

Each module parses, makes one call that returns plain data, and prints it.
"""
