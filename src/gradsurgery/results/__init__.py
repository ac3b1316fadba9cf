"""What finished runs say: their records as a data frame, statistics, selection and tables."""

from gradsurgery.results.ranking import rank_methods
from gradsurgery.results.runs import Inventory, curves_frame, runs_frame, take_inventory
from gradsurgery.results.selection import Search, search_of, select, select_by_all
from gradsurgery.results.tables import Cell, ComparisonTable, compare_runs

__all__ = [
    "Cell",
    "ComparisonTable",
    "Inventory",
    "Search",
    "compare_runs",
    "curves_frame",
    "rank_methods",
    "runs_frame",
    "search_of",
    "select",
    "select_by_all",
    "take_inventory",
]
