"""What a report is made from: the runs that are there, and those that are not."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsurgery.layout import PLAN_FILE
from gradsurgery.results.plan import Failure, PlannedRun, find_plans, read_failures
from gradsurgery.results.records import find_records, read_record, runs_of

if TYPE_CHECKING:
    import pandas as pd


SIMILARITY = "similarity.json"
STUDIES = (SIMILARITY, "diagnosis.json")
RECORD = "record.json"


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


def study_files(paths: Sequence[Path]) -> list[Path]:
    """The files of studies of gradients in those of `paths` that are folders, by path."""
    folders = [path for path in paths if path.is_dir()]
    return sorted({file for folder in folders for name in STUDIES for file in folder.rglob(name)})


def record_files(paths: Sequence[Path]) -> list[Path]:
    """The records at `paths` but for the runs that a study trained for itself.

    Those lie below the study's file, with no sweep's plan in between. Where no other is left they
    are all given, and so is each that is itself among `paths`. Raises `DataError` as `find_records`
    does.
    """
    with_runs = [path for path in paths if not study_files([path]) or any(path.rglob(RECORD))]
    found = find_records(with_runs or paths)
    roots = {path.resolve() for path in paths}
    return [file for file in found if not _of_a_study(file, roots)] or found


def _of_a_study(file: Path, roots: set[Path]) -> bool:
    folder = file.resolve()
    if folder in roots:
        return False
    folder = folder.parent
    while folder not in roots and folder != folder.parent:
        folder = folder.parent
        if (folder / PLAN_FILE).exists():
            return False
        if any((folder / name).exists() for name in STUDIES):
            return True
    return False


def take_inventory(paths: Sequence[Path]) -> Inventory:
    """Read everything at `paths`.

    A folder may hold studies of gradients and no runs where another holds runs. Raises `DataError`
    for paths without any run, and for what is no record, plan or failure.
    """
    records = {path: read_record(path) for path in record_files(paths)}
    planned, failures = find_plans(paths), read_failures(paths)
    given_up = {failure.path.parent.resolve() for failure in failures}
    missing = [
        run
        for run in planned or ()
        if not (run.directory / RECORD).exists() and run.directory.resolve() not in given_up
    ]
    return Inventory(
        paths=tuple(paths),
        runs=runs_of(records),
        records=records,
        planned=None if planned is None else tuple(planned),
        failures=tuple(failures),
        missing=tuple(missing),
    )
