"""Before a run: will it train, will it fit, how long will it take?

Imports core to compare.
"""
