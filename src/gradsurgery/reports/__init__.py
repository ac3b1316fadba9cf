"""What finished runs say: their records as a data frame, as tables and as text."""

from gradsurgery.reports.comparison import Cell, ComparisonTable
from gradsurgery.reports.plan import (
    Failure,
    PlannedRun,
    find_plans,
    read_failures,
    read_plan,
)
from gradsurgery.reports.records import find_records, read_curves, read_record, read_runs
from gradsurgery.reports.render import to_csv, to_latex, to_markdown
from gradsurgery.reports.tables import compare_runs, rank_methods

__all__ = [
    "Cell",
    "ComparisonTable",
    "Failure",
    "PlannedRun",
    "compare_runs",
    "find_plans",
    "find_records",
    "rank_methods",
    "read_curves",
    "read_failures",
    "read_plan",
    "read_record",
    "read_runs",
    "to_csv",
    "to_latex",
    "to_markdown",
]
