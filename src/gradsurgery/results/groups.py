"""The runs that belong to each comparison table."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradsurgery.results.comparison import ComparisonTable, Model
from gradsurgery.results.tables import compare_runs

if TYPE_CHECKING:
    import pandas as pd

    from gradsurgery.results.plan import PlannedRun


@dataclass(frozen=True)
class Group:
    """A comparison table, the rows of `read_runs` it is made of, and their settings."""

    table: ComparisonTable
    runs: "pd.DataFrame"
    settings: dict[str, Any]

    def accuracies(self) -> dict[tuple[str, str], list[float]]:
        """Target accuracy in percent by (method, target), in the order of the seeds."""
        column = f"{self.table.model}_target_accuracy"
        grouped = self.runs.sort_values("seed").groupby(["method", "target"])[column]
        return {
            (str(method), str(target)): [100 * float(value) for value in values]
            for (method, target), values in grouped
        }


def group_runs(
    runs: "pd.DataFrame",
    model: Model,
    baseline: str,
    expected: "Sequence[PlannedRun] | None" = None,
) -> list[Group]:
    """The tables of `compare_runs`, each with its runs; raises `DataError` as that does."""
    tables = compare_runs(runs, model, baseline, expected)
    compared = runs[[not without for without in runs["without"]]]
    groups = [
        (json.loads(str(key)), group)
        for _, of_data in compared.groupby("data", sort=True)
        for key, group in of_data.groupby("settings")
    ]
    return [
        Group(table, group, settings)
        for table, (settings, group) in zip(tables, groups, strict=True)
    ]


def batches_pairs(groups: Sequence[Group]) -> list[tuple[Group, Group]]:
    """Pairs (multi, single) of groups that differ in the setting `batches` alone."""
    return [
        (multi, single)
        for multi in groups
        for single in groups
        if multi.table.data == single.table.data
        and multi.settings.get("batches", "multi") == "multi"
        and single.settings == {**multi.settings, "batches": "single"}
    ]
