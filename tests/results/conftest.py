"""Fixtures: records made by hand."""

from tests.results.records import record, written

__all__ = ["record", "written"]
