"""What finished runs say: their records as a data frame, as tables and as text."""

from gradsurgery.reports.records import find_records, read_record, read_runs
from gradsurgery.reports.render import to_csv, to_latex, to_markdown
from gradsurgery.reports.tables import Cell, ComparisonTable, compare_runs

__all__ = [
    "Cell",
    "ComparisonTable",
    "compare_runs",
    "find_records",
    "read_record",
    "read_runs",
    "to_csv",
    "to_latex",
    "to_markdown",
]
