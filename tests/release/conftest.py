"""Fixtures of releases."""

from tests.support.releases import signed

__all__ = ["signed"]
