"""Comparison tables: accuracy on the target by method and target, each method tested."""

import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from gradsurgery.errors import DataError
from gradsurgery.results.comparison import DECIMALS, Cell, ComparisonTable, Model
from gradsurgery.results.plan import PlannedRun
from gradsurgery.results.statistics import Ranking, compare_paired, corrected, ranking

if TYPE_CHECKING:
    import pandas as pd

BASELINE = "deep-all"
Key = TypeVar("Key", bound=Hashable)
Cells = dict[tuple[str, str], Cell]
Accuracies = dict[tuple[str, str], dict[int, float]]


def compare_runs(
    runs: "pd.DataFrame",
    model: Model = "best",
    baseline: str = BASELINE,
    expected: Sequence[PlannedRun] | None = None,
) -> list[ComparisonTable]:
    """Tables of `read_runs`, of the accuracies of the best or the last model.

    Runs that differ in anything but target, method, seed and device are never in one table: each
    group has its own, which names the settings that set it apart. Runs that leave out source
    domains (`without`) are in none. The baseline is the first method.

    The seeds of a table are those of all its runs and of the runs expected of its data set; a cell
    that has not all of them is not complete. Every complete cell is compared with the baseline's
    complete cell of the same target, seed by seed: `compare_paired` in points, `p_holm` over all
    comparisons of the table.

    Args:
        runs: as `read_runs` gives them, or `selected_runs`.
        model: whose accuracy.
        baseline: the method that the others are compared with, as its row is called.
        expected: the planned runs (`read_plan`); methods, targets and seeds that are planned are
            in the table before their runs are.

    Raises `DataError` where one run is there twice, and where all hold out two domains.
    """
    tables = []
    compared = runs[runs["without"].map(len) == 0]
    if len(runs) and compared.empty:
        raise DataError(
            "every run holds out two domains; there is none to compare: finish runs with one"
        )
    for name, of_data in compared.groupby("data", sort=True):
        groups = [(json.loads(str(key)), group) for key, group in of_data.groupby("settings")]
        planned = [run for run in expected or () if run.data == name and not run.without]
        settings = [shared for shared, _ in groups]
        for shared, group in groups:
            frame = _frame(group, planned, baseline, alone=len(groups) == 1)
            accuracies = _accuracies(group, f"{model}_target_accuracy")
            cells = _compared(_cells(accuracies, frame), accuracies, frame, baseline)
            marked: Cells = {}
            for target in frame.targets:
                marked |= _marked({key: cell for key, cell in cells.items() if key[1] == target})
            tables.append(
                ComparisonTable(
                    data=str(name),
                    settings={k: shared.get(k) for k in _differing(settings)},
                    model=model,
                    baseline=baseline,
                    methods=frame.methods,
                    targets=frame.targets,
                    seeds=frame.seeds,
                    cells=marked,
                    averages=_marked(_averages(cells, frame)),
                    selection=shared.get("selection", ""),
                )
            )
    return tables


def rank_methods(tables: Sequence[ComparisonTable]) -> Ranking | None:
    """The methods' average ranks over the (data set, target) cells of all tables.

    A cell in which some method is absent or not complete is left out and named; None where no cell
    is left or there are fewer than two methods. See `gradsurgery.results.statistics.ranking`.
    """
    methods = list(dict.fromkeys(method for table in tables for method in table.methods))
    return ranking(
        methods,
        {
            f"{table.name}, {target}": {
                method: table.cells[method, target].mean
                for method in methods
                if (method, target) in table.cells and table.cells[method, target].complete
            }
            for table in tables
            for target in table.targets
        },
    )


def kind_of_cells(tables: Sequence[ComparisonTable]) -> str:
    """What a cell of `rank_methods` is: a data set has several tables where settings differ."""
    settings = any(table.settings for table in tables)
    return f"(data set, {'setting, ' if settings else ''}target) cell"


def _differing(settings: list[dict[str, Any]]) -> list[str]:
    """The names on which the settings do not all agree."""
    names = {name: None for each in settings for name in each}
    return [n for n in names if any(each.get(n) != settings[0].get(n) for each in settings)]


@dataclass(frozen=True)
class _Frame:
    """The rows, columns and seeds of a table, those of its runs and those that are planned."""

    methods: tuple[str, ...]
    targets: tuple[str, ...]
    seeds: tuple[int, ...]


def _frame(
    runs: "pd.DataFrame", planned: list[PlannedRun], baseline: str, *, alone: bool
) -> _Frame:
    """`planned` are those of the data set; whose table a method's would be is known if `alone`."""
    methods = set(runs["method"])
    targets = {*runs["target"], *(run.target for run in planned)}
    if alone:
        methods |= {run.method for run in planned} - set(runs["method_name"])
    return _Frame(
        tuple(sorted(methods, key=lambda name: (name != baseline, name))),
        tuple(domain for domain in runs["domains"].iloc[0] if domain in targets),
        tuple(sorted({int(seed) for seed in runs["seed"]} | {run.seed for run in planned})),
    )


def _accuracies(runs: "pd.DataFrame", column: str) -> Accuracies:
    """In percent by (method, target) and seed; raises `DataError` for a run that is there twice."""
    found: Accuracies = {}
    files: dict[tuple[str, str, int], str] = {}
    ordered = runs.sort_values(["method", "target", "seed"], kind="stable")
    columns = [ordered[name] for name in ("method", "target", "seed", column, "record")]
    for method, target, seed, accuracy, file in zip(*columns, strict=True):
        if (method, target, seed) in files:
            raise DataError(
                f"the run of {method} on {target} with seed {seed} is there twice: "
                f"{files[method, target, seed]} and {file}; give one of them"
            )
        files[method, target, seed] = file
        found.setdefault((method, target), {})[int(seed)] = 100 * float(accuracy)
    return found


def _cells(accuracies: Accuracies, frame: _Frame) -> Cells:
    import numpy as np

    return {
        key: Cell(
            mean=float(np.mean(list(of_seed.values()))),
            std=float(np.std(list(of_seed.values()), ddof=1)) if len(of_seed) > 1 else None,
            runs=len(of_seed),
            planned=len(frame.seeds),
            complete=len(of_seed) == len(frame.seeds),
            best=False,
        )
        for key, of_seed in accuracies.items()
    }


def _compared(cells: Cells, accuracies: Accuracies, frame: _Frame, baseline: str) -> Cells:
    """The cells with the comparisons of those that are complete, as the baseline's is."""
    from gradsurgery.seeds import derive_seed

    if len(frame.seeds) < 2:
        return cells
    complete = [key for key, cell in cells.items() if cell.complete]
    tested = [(m, t) for m, t in complete if m != baseline and (baseline, t) in complete]
    seed = derive_seed(0, "bootstrap")
    comparisons = [
        compare_paired(
            [accuracies[method, target][k] for k in frame.seeds],
            [accuracies[baseline, target][k] for k in frame.seeds],
            seed=seed,
        )
        for method, target in tested
    ]
    family = dict(zip(tested, corrected(comparisons), strict=True))
    return {key: replace(cell, comparison=family.get(key)) for key, cell in cells.items()}


def _averages(cells: Cells, frame: _Frame) -> dict[str, Cell]:
    """The mean over the targets of every method whose cells are all complete."""
    averages: dict[str, Cell] = {}
    if len(frame.targets) < 2:
        return averages
    for method in frame.methods:
        row = [cells.get((method, target)) for target in frame.targets]
        complete = [cell for cell in row if cell is not None and cell.complete]
        if len(complete) == len(row):
            averages[method] = Cell(
                mean=sum(cell.mean for cell in complete) / len(complete),
                std=None,
                runs=len(frame.seeds),
                planned=len(frame.seeds),
                complete=True,
                best=False,
            )
    return averages


def _marked(cells: dict[Key, Cell]) -> dict[Key, Cell]:
    """The cells, those complete of the highest mean as printed marked as best; one alone is not."""
    means = [round(cell.mean, DECIMALS) for cell in cells.values() if cell.complete]
    if len(means) < 2:
        return cells
    return {
        key: replace(cell, best=cell.complete and round(cell.mean, DECIMALS) == max(means))
        for key, cell in cells.items()
    }
