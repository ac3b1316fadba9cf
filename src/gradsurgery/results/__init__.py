"""What finished runs say: their records as a data frame, statistics and tables."""

from gradsurgery.results.comparison import Cell, ComparisonTable
from gradsurgery.results.inventory import record_files
from gradsurgery.results.paired_tests import comparison_frame, comparison_rows
from gradsurgery.results.paper import PaperFigure, paper_figures, paper_row
from gradsurgery.results.plan import (
    Failure,
    PlannedRun,
    find_plans,
    read_failures,
    read_plan,
)
from gradsurgery.results.records import find_records, read_curves, read_record, read_runs
from gradsurgery.results.selected import selected_runs
from gradsurgery.results.tables import compare_runs, rank_methods

__all__ = [
    "Cell",
    "ComparisonTable",
    "Failure",
    "PaperFigure",
    "PlannedRun",
    "compare_runs",
    "comparison_frame",
    "comparison_rows",
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
]
