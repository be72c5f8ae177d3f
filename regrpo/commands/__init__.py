"""What people type, a file a command: parse, one call that returns plain data, print.

Imports every other package, and `stages` (`clone` finds them in the current folder).
"""
