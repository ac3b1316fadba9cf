"""`gradsurgery select`: the hyperparameters that a search comes to, by three criteria."""

import itertools
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradsurgery.cli.terminal_table import grid, literal

if TYPE_CHECKING:
    import pandas as pd

    from gradsurgery.results import PlannedRun
    from gradsurgery.results.selection import Selection


class Criterion(StrEnum):
    """How hyperparameters are chosen."""

    TRAINING_DOMAIN = "training-domain"
    LEAVE_ONE_DOMAIN_OUT = "leave-one-domain-out"
    ORACLE = "oracle"


def select(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of runs.")],
    *,
    criterion: Annotated[
        Criterion | None, typer.Option("--criterion", help="Show this one only.")
    ] = None,
    candidates: Annotated[
        bool, typer.Option("--candidates", help="Show how every candidate scores.")
    ] = False,
) -> None:
    """Choose hyperparameters among the runs of a folder, and write selection.json there.

    training-domain: by the validation images of the source domains. leave-one-domain-out: by each
    source domain in turn, held out too. oracle: by the target's validation images, which is not
    attainable where the target is unknown, and only says what could be had.
    """
    from gradsurgery.errors import ArgumentError
    from gradsurgery.results import find_plans, read_runs, record_files
    from gradsurgery.results.selection import (
        CHOICE_HEADER,
        CRITERIA,
        EVIDENCE_HEADER,
        SELECTION_FILE,
        choice_rows,
        evidence_rows,
        read_selections,
        write_selections,
    )

    if not folder.is_dir():
        raise ArgumentError(f"{folder} is no folder; give a folder of runs")
    runs, plan = read_runs(record_files([folder])), find_plans([folder])
    selections = selections_among(runs, plan, list(CRITERIA))
    path = folder / SELECTION_FILE
    if path.exists():
        read_selections(path)  # another version's, or someone else's, is not overwritten
    write_selections(selections, path)
    shown = [s for s in selections if criterion is None or s.criterion == criterion.value]
    if candidates:
        _print(EVIDENCE_HEADER, evidence_rows(shown))
    _print(CHOICE_HEADER, choice_rows(shown))
    if not all(CRITERIA[selection.criterion].attainable for selection in shown):
        print("The oracle sees the target's images, which nobody has who needs the model.")
    print(f"written to {path}")


def selections_among(
    runs: "pd.DataFrame", plan: "list[PlannedRun] | None", criteria: list[str]
) -> "list[Selection]":
    """What each of the criteria chooses among the runs, with the plan's seeds and order."""
    import pandas as pd

    from gradsurgery.results.selection import select

    planned = None if plan is None else pd.DataFrame(plan)
    return [select(runs, criterion, planned=planned) for criterion in criteria]


def _print(header: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console

    console = Console()
    for data, of_data in itertools.groupby(rows, key=lambda row: row[0]):
        table = grid(*header[1:], left=4)
        for column in table.columns[4:6]:
            column.no_wrap = True
        for row in of_data:
            table.add_row(*map(literal, row[1:]))
        console.print(literal(data))
        console.print(table)
