"""The figures of the paper's Table 1, to stand beside one's own.

Source: Mansilla, Echeveste, Milone, Ferrante, "Domain generalization via gradient surgery", ICCV
2021, Table 1: AlexNet, 20 runs a cell, Wilcoxon tests against Deep-All at 0.05.
"""

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

from gradsurgery.results.tables import ComparisonTable

CITATION = "Mansilla et al. 2021, Table 1"


class PaperFigure(NamedTuple):
    """Accuracy in percent; `significant` is the paper's star; an average has no `std`."""

    mean: float
    std: float | None
    significant: bool


@cache
def paper_figures() -> dict[tuple[str, str, str], PaperFigure]:
    """The paper's figures by data set, target and method, as this package calls them.

    >>> paper_figures()["pacs", "sketch", "agr-sum"]
    PaperFigure(mean=57.35, std=3.29, significant=True)
    """
    with Path(__file__).with_name("paper_table1.csv").open(encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file)
    return {
        (data, target, method): PaperFigure(float(mean), float(std), star == "1")
        for data, target, method, mean, std, star in rows
    }


def paper_row(table: ComparisonTable, method: str) -> list[PaperFigure | None]:
    """The paper's figures for a row of `table`: its targets, and the average where there is one.

    Empty where the paper has no figure for the method on any of the targets; the average is there
    where it has one for each.
    """
    figures = paper_figures()
    found = [figures.get((table.data, target, method)) for target in table.targets]
    present = [figure for figure in found if figure is not None]
    if not present:
        return []
    if len(table.targets) < 2:
        return found
    mean = sum(figure.mean for figure in present) / len(present)
    complete = len(present) == len(found)
    return [*found, PaperFigure(mean, None, False) if complete else None]
