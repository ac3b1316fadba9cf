"""What a report is made from: the runs that are there, and those that are not."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsurgery.reports.plan import Failure, PlannedRun, find_plans, read_failures
from gradsurgery.reports.records import find_records, read_record, read_runs

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Inventory:
    """The records at some paths, and what should be there too.

    runs: a row a record, as `read_runs` gives them.
    records: the content of each record by its path.
    planned: the runs that the sweeps' plans name, None where no folder has a plan.
    failures: runs that were given up.
    missing: planned runs that are neither finished nor given up.
    """

    paths: tuple[Path, ...]
    runs: "pd.DataFrame"
    records: dict[Path, dict[str, Any]]
    planned: tuple[PlannedRun, ...] | None
    failures: tuple[Failure, ...]
    missing: tuple[PlannedRun, ...]


def take_inventory(paths: Sequence[Path]) -> Inventory:
    """Read everything at `paths`; raises `DataError` for what is no record, plan or failure."""
    runs = read_runs(paths)
    planned, failures = find_plans(paths), read_failures(paths)
    given_up = {failure.path.parent.resolve() for failure in failures}
    missing = [
        run
        for run in planned or ()
        if not (run.directory / "record.json").exists() and run.directory.resolve() not in given_up
    ]
    return Inventory(
        paths=tuple(paths),
        runs=runs,
        records={path: read_record(path) for path in find_records(paths)},
        planned=None if planned is None else tuple(planned),
        failures=tuple(failures),
        missing=tuple(missing),
    )
