"""What goes in, and the gate: questions, base weights, and the checks before anything trains.

Imports core.
"""
