"""Fixtures of cards and report pages."""

from tests.support.cards import reports
from tests.support.report_pages import inside, whole

__all__ = ["inside", "reports", "whole"]
