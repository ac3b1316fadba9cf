"""Runs that differ in hyperparameters: what each criterion chooses, and whose runs are compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gradsurgery.errors import ArgumentError, DataError
from gradsurgery.layout import PLAN_FILE, VERSION
from gradsurgery.results.inventory import Inventory
from gradsurgery.results.selected import selected_runs
from gradsurgery.results.selection import (
    CHOICE_HEADER,
    CRITERIA,
    EVIDENCE_HEADER,
    Selection,
    choice_rows,
    evidence_rows,
    select,
)
from gradsurgery.versioned import read_versioned

if TYPE_CHECKING:
    import pandas as pd

ALL = "none"
"""Instead of a criterion: compare the runs of every candidate."""


@dataclass(frozen=True)
class Search:
    """The runs to compare, and how they were chosen.

    `selections` is what every criterion chooses, empty where nothing was searched; `used` is the
    criterion that chose `runs`, "none" where they are all.
    """

    runs: "pd.DataFrame"
    selections: tuple[Selection, ...]
    used: str

    @property
    def model(self) -> Literal["best", "last"]:
        """Whose accuracy results from the choice."""
        return "best" if self.used == ALL else CRITERIA[self.used].model

    @property
    def tried_several(self) -> bool:
        """Whether some choice had more than one candidate."""
        return any(len(c.candidates) > 1 for each in self.selections for c in each.choices)

    def markdown(self) -> str:
        """The choices and their evidence as Markdown."""
        parts = {
            "Model selection": (CHOICE_HEADER, choice_rows(self.selections)),
            "Candidates": (EVIDENCE_HEADER, evidence_rows(self.selections)),
        }
        return "\n".join(f"# {title}\n\n{_pipes(*part)}" for title, part in parts.items())


def search_of(inventory: Inventory, criterion: str | None) -> Search:
    """The runs that the tables of a report compare.

    criterion: whose choice, "none" for all; None is "training-domain" for the runs of a plan with
    a grid, else "none". Where nothing was searched, or nothing can be chosen yet, None is "none"
    too; one that was asked for still says which model is tested.

    Raises `ArgumentError` for an unknown criterion, `DataError` for one that can choose nothing.
    """
    if criterion not in (None, ALL, *CRITERIA):
        known = ", ".join([*CRITERIA, ALL])
        raise ArgumentError(f"selected must be one of {known}, found {criterion!r}")
    import pandas as pd

    planned = None if inventory.planned is None else pd.DataFrame(list(inventory.planned))
    first = select(inventory.runs, next(iter(CRITERIA)), planned=planned)
    searched = any(len(choice.candidates) > 1 for choice in first.choices)
    if not searched and criterion in (None, ALL):
        return Search(inventory.runs, (), ALL)
    selections = tuple(select(inventory.runs, name, planned=planned) for name in CRITERIA)
    asked = criterion is not None
    if criterion is None:
        criterion = "training-domain" if _has_grid(inventory.paths) else ALL
    if criterion != ALL:
        chosen = selected_runs(
            inventory.runs, next(each for each in selections if each.criterion == criterion)
        )
        if len(chosen):
            return Search(chosen, selections, criterion)
        if asked:
            raise DataError(nothing_chosen(criterion, inventory.paths[0]))
    return Search(inventory.runs, selections, ALL)


def nothing_chosen(criterion: str, folder: Path) -> str:
    """What to say where a criterion that was asked for finds no candidate that is complete."""
    return (
        f"{criterion} can choose nothing among the runs in {folder} yet; gradsurgery select "
        f"{folder} says what it needs"
    )


def provisional(selection: Selection) -> str:
    """A sentence on the choices that were made while runs of some candidate are missing, or ""."""
    early = [
        choice
        for choice in selection.choices
        if choice.candidate is not None
        and (choice.unfinished or not all(each.eligible for each in choice.candidates))
    ]
    if not early:
        return ""
    return (
        f"{len(early)} of {len(selection.choices)} choices of hyperparameters were made while runs "
        "of some candidate are missing, and may change."
    )


def _has_grid(paths: Sequence[Path]) -> bool:
    for path in paths:
        if (path / PLAN_FILE).is_file():
            content = read_versioned(
                path / PLAN_FILE, "plan of a sweep", VERSION, cure="plan it again"
            )
            plan = content.get("plan")
            if isinstance(plan, dict) and plan.get("grid"):
                return True
    return False


def _pipes(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)
