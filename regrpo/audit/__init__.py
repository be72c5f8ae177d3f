"""Is a run what its records say, and can it be made again?

Imports core to report.
"""
