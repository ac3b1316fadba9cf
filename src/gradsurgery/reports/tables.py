"""Comparison tables: mean and standard deviation of the target accuracy by method and target."""

import json
import math
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from gradsurgery.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

Model = Literal["best", "last"]
DECIMALS = 2
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Cell:
    """Accuracy in percent over runs.

    `std` is the sample standard deviation (n - 1), None for one run and for an average of
    targets. `complete` says whether every seed of the table is in it; `best` whether no method
    has a higher mean, as printed, for the target, and there is another to compare with.
    """

    mean: float
    std: float | None
    runs: int
    complete: bool
    best: bool


@dataclass(frozen=True)
class ComparisonTable:
    """Runs of one data set that differ in target, method and seed alone.

    `settings` are those in which the tables of the same data set differ, empty where there is one.
    `cells[method, target]` is absent where there is no run; `averages[method]` is the mean over
    the targets, absent where the method lacks a target, and for all where there is one target.
    """

    data: str
    settings: dict[str, Any]
    model: Model
    methods: tuple[str, ...]
    targets: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: dict[tuple[str, str], Cell]
    averages: dict[str, Cell]

    @property
    def title(self) -> str:
        """One line that says what the figures are."""
        count = len(self.seeds)
        over = f"mean ± std over {count} seeds" if count > 1 else "1 seed"
        settings = "".join(f", {name} {value}" for name, value in self.settings.items())
        return f"{self.data}{settings}: target accuracy (%) of the {self.model} model, {over}"


def compare_runs(runs: "pd.DataFrame", model: Model = "best") -> list[ComparisonTable]:
    """Tables of `read_runs`, of the accuracies of the best or the last model.

    Runs that differ in anything but target, method, seed and device are never in one table: each
    group has its own, which names the settings that set it apart. Deep-All is the first method.

    Raises `DataError` where one run is there twice.
    """
    tables = []
    for name, of_data in runs.groupby("data", sort=True):
        groups = [(json.loads(str(key)), group) for key, group in of_data.groupby("settings")]
        settings = [shared for shared, _ in groups]
        for shared, group in groups:
            apart = {k: shared.get(k) for k in _differing(settings)}
            tables.append(_table(str(name), apart, group, model))
    return tables


def _differing(settings: list[dict[str, Any]]) -> list[str]:
    """The names on which the settings do not all agree."""
    names = {name: None for each in settings for name in each}
    return [n for n in names if any(each.get(n) != settings[0].get(n) for each in settings)]


def _table(data: str, apart: dict[str, Any], runs: "pd.DataFrame", model: Model) -> ComparisonTable:
    _refuse_duplicates(runs)
    present = set(runs["target"])
    targets = tuple(domain for domain in runs["domains"].iloc[0] if domain in present)
    methods = tuple(sorted(set(runs["method"]), key=lambda name: (name != "deep-all", name)))
    seeds = tuple(sorted({int(seed) for seed in runs["seed"]}))
    cells = {}
    for (method, target), group in runs.groupby(["method", "target"]):
        percent = group[f"{model}_target_accuracy"].astype(float) * 100
        std = float(percent.std(ddof=1))
        cells[str(method), str(target)] = Cell(
            mean=float(percent.mean()),
            std=None if math.isnan(std) else std,
            runs=len(group),
            complete=len(group) == len(seeds),
            best=False,
        )
    averages = _averages(cells, methods, targets)
    marked: dict[tuple[str, str], Cell] = {}
    for target in targets:
        marked |= _marked({key: cell for key, cell in cells.items() if key[1] == target})
    return ComparisonTable(data, apart, model, methods, targets, seeds, marked, _marked(averages))


def _refuse_duplicates(runs: "pd.DataFrame") -> None:
    for (target, method, seed), group in runs.groupby(["target", "method", "seed"]):
        if len(group) > 1:
            files = " and ".join(group["record"])
            raise DataError(
                f"the run of {method} on {target} with seed {seed} is there {len(group)} times: "
                f"{files}; give one of them"
            )


def _averages(
    cells: dict[tuple[str, str], Cell], methods: tuple[str, ...], targets: tuple[str, ...]
) -> dict[str, Cell]:
    averages: dict[str, Cell] = {}
    if len(targets) < 2:
        return averages
    for method in methods:
        row = [cells[method, target] for target in targets if (method, target) in cells]
        if len(row) == len(targets):
            averages[method] = Cell(
                mean=sum(cell.mean for cell in row) / len(row),
                std=None,
                runs=min(cell.runs for cell in row),
                complete=all(cell.complete for cell in row),
                best=False,
            )
    return averages


def _marked(cells: dict[Key, Cell]) -> dict[Key, Cell]:
    """The cells, those of the highest mean as printed marked as best; one alone is not."""
    if len(cells) < 2:
        return cells
    highest = max(round(cell.mean, DECIMALS) for cell in cells.values())
    return {
        key: replace(cell, best=round(cell.mean, DECIMALS) == highest)
        for key, cell in cells.items()
    }
