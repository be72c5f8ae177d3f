"""The model card and the HTML pages.

Imports core to tracking.
"""
