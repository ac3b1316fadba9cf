"""What finished runs say: their records as a data frame, as tables and as text."""

from gradsurgery.reports.comparison import Cell, ComparisonTable
from gradsurgery.reports.inventory import record_files
from gradsurgery.reports.paired_tests import comparison_frame, comparison_rows
from gradsurgery.reports.paper import PaperFigure, paper_figures, paper_row
from gradsurgery.reports.plan import (
    Failure,
    PlannedRun,
    find_plans,
    read_failures,
    read_plan,
)
from gradsurgery.reports.records import find_records, read_curves, read_record, read_runs
from gradsurgery.reports.render import (
    comparisons_to_latex,
    comparisons_to_markdown,
    to_csv,
    to_latex,
    to_markdown,
)
from gradsurgery.reports.selected import selected_runs
from gradsurgery.reports.tables import compare_runs, rank_methods

__all__ = [
    "Cell",
    "ComparisonTable",
    "Failure",
    "PaperFigure",
    "PlannedRun",
    "compare_runs",
    "comparison_frame",
    "comparison_rows",
    "comparisons_to_latex",
    "comparisons_to_markdown",
    "find_plans",
    "find_records",
    "paper_figures",
    "paper_row",
    "rank_methods",
    "read_curves",
    "read_failures",
    "read_plan",
    "read_record",
    "read_runs",
    "record_files",
    "selected_runs",
    "to_csv",
    "to_latex",
    "to_markdown",
]
