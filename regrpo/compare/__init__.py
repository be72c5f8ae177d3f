"""Runs against each other, and the promotion of one.

Imports core to audit.
"""
