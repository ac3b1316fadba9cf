"""`gradsurgery select`: the hyperparameters that a search comes to, by three criteria."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gradsurgery.documents.selection import CRITERIA, CriterionName, Selections
from gradsurgery.errors import ArgumentError
from gradsurgery.report.rendering import OnTerminal
from gradsurgery.report.section import Table, Text
from gradsurgery.report.tables import by_data_and_target, candidates_table, choices_table
from gradsurgery.results import select_by_all, take_inventory


def select(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of runs.")],
    *,
    criterion: Annotated[
        CriterionName | None, typer.Option("--criterion", help="Show this one only.")
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
    if not folder.is_dir():
        raise ArgumentError(f"{folder} is no folder; give a folder of runs")
    selections = select_by_all(take_inventory([folder]))
    path = folder / Selections.file_name
    if path.exists():
        Selections.load(path)  # another version's, or someone else's, is not overwritten
    selections.save(folder)
    shown = {
        name: selection
        for name, selection in selections.criteria.items()
        if criterion is None or name == criterion
    }
    tables = [candidates_table, choices_table] if candidates else [choices_table]
    blocks: list[Text | Table] = [
        each for table in tables for each in by_data_and_target(table(shown))
    ]
    if not all(CRITERIA[name].attainable for name in shown):
        blocks.append(
            Text("The oracle sees the target's images, which nobody has who needs the model.")
        )
    Console().print(OnTerminal(blocks))
    print(f"written to {path}")
