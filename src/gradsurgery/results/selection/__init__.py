"""Model selection from records: which hyperparameters each criterion chooses, and why."""

from gradsurgery.results.selection.choice import (
    CRITERIA,
    Candidate,
    Choice,
    Criterion,
    Selection,
    Summary,
)
from gradsurgery.results.selection.selecting import select
from gradsurgery.results.selection.selection_file import (
    SELECTION_FILE,
    read_selections,
    write_selections,
)
from gradsurgery.results.selection.table import (
    CHOICE_HEADER,
    EVIDENCE_HEADER,
    choice_rows,
    evidence_rows,
)

__all__ = [
    "CHOICE_HEADER",
    "CRITERIA",
    "EVIDENCE_HEADER",
    "SELECTION_FILE",
    "Candidate",
    "Choice",
    "Criterion",
    "Selection",
    "Summary",
    "choice_rows",
    "evidence_rows",
    "read_selections",
    "select",
    "write_selections",
]
