"""What a run leaves behind (run.json, the journal), and how it is found again.

Imports core to evaluate.
"""
