"""What every stage stands on.

Errors, files, profiles, git and DVC as they are, what a correct answer is.

Imports no other package of regrpo.
"""
