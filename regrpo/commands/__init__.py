"""The commands of `regrpo`: each module parses, makes one call that returns plain data, and prints it."""
