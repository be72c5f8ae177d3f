"""Measuring with lm-eval, the statistics of it, and the one schema of results that everybody reads.

Imports core, inputs and train.
"""
