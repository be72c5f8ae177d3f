"""What people type, a file a command: parse, ask for plain data, print it.

Imports every other package, and `stages` (`clone` finds them in the current folder).
"""
