"""What a report is made from: the runs that are there, and those that are not."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from gradsurgery.documents.plan import Failure, PlannedRun, SweepPlan
from gradsurgery.documents.record import Record
from gradsurgery.documents.studies import Diagnosis, Explanation, SimilarityStudy
from gradsurgery.errors import DataError
from gradsurgery.results.frame import Records, runs_frame

if TYPE_CHECKING:
    import pandas as pd

STUDIES = (SimilarityStudy.file_name, Diagnosis.file_name)


@dataclass(frozen=True)
class Inventory:
    """The records at some paths, and what should be there too.

    records: by their files.
    planned: the runs that the sweeps' plans name by their folders, None where no folder has a plan.
    searched: whether a plan tries several hyperparameters.
    failures: runs that were given up, by their folders.
    """

    paths: tuple[Path, ...]
    records: Records
    planned: dict[Path, PlannedRun] | None
    searched: bool
    failures: dict[Path, Failure]

    @cached_property
    def runs(self) -> "pd.DataFrame":
        """A row a record."""
        return runs_frame(self.records)

    @property
    def missing(self) -> list[PlannedRun]:
        """Planned runs that are neither finished nor given up."""
        there = {path.parent.resolve() for path in self.records}
        there |= {folder.resolve() for folder in self.failures}
        return [
            run
            for folder, run in (self.planned or {}).items()
            if folder not in there and not (folder / Record.file_name).exists()
        ]


def take_inventory(paths: Sequence[Path]) -> Inventory:
    """Read everything at `paths`.

    A folder may hold studies of gradients and no runs where another holds runs. Raises `DataError`
    for paths without any run, and for what is no record, plan or failure.
    """
    records = _comparable({path: Record.load(path) for path in record_files(paths)})
    folders = dict.fromkeys(p.resolve() for p in paths if (p / SweepPlan.file_name).is_file())
    plans = {folder: SweepPlan.load(folder) for folder in folders}
    planned = {
        (folder / run.directory).resolve(): run
        for folder, plan in plans.items()
        for run in plan.runs
    }
    return Inventory(
        paths=tuple(paths),
        records=records,
        planned=planned if plans else None,
        searched=any(plan.plan.get("grid") for plan in plans.values()),
        failures={file.parent: Failure.load(file) for file in _failure_files(paths)},
    )


def find_records(paths: Iterable[Path]) -> list[Path]:
    """The record files at `paths`: files as they are, folders searched for `**/record.json`.

    Each file is there once, however many paths lead to it. Raises `DataError` for a path that
    does not exist and for one without a record.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist; give a record.json or a folder of runs")
        files = sorted(path.rglob(Record.file_name)) if path.is_dir() else [path]
        if not files:
            raise DataError(
                f"no record.json under {path}: no run there is finished; "
                "give a folder of finished runs"
            )
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def record_files(paths: Sequence[Path]) -> list[Path]:
    """The records at `paths` but for the runs that a study trained for itself.

    Those lie below the study's file, with no sweep's plan in between. Where no other is left they
    are all given, and so is each that is itself among `paths`. Raises `DataError` as `find_records`
    does.
    """
    with_runs = [p for p in paths if not study_files([p]) or any(p.rglob(Record.file_name))]
    found = find_records(with_runs or paths)
    roots = {path.resolve() for path in paths}
    return [file for file in found if not _of_a_study(file, roots)] or found


def study_files(paths: Sequence[Path]) -> list[Path]:
    """The files of studies and explanations in those of `paths` that are folders, by path."""
    folders = [path for path in paths if path.is_dir()]
    names = (*STUDIES, Explanation.file_name)
    return sorted({file for folder in folders for name in names for file in folder.rglob(name)})


def _comparable(records: dict[Path, Record]) -> dict[Path, Record]:
    """Those with a target: a run on all domains has nothing that methods are compared by."""
    with_target = {
        path: record
        for path, record in records.items()
        if record.configuration.held_out(record.data.domains) is not None
    }
    if not with_target:
        raise DataError(
            f"{next(iter(records))} and the others there hold out no domain, and there is nothing "
            "to compare them by; gradsurgery show tells of one of them"
        )
    return with_target


def _failure_files(paths: Sequence[Path]) -> list[Path]:
    """By path; one beside a finished run's record is left out: a later attempt succeeded."""
    files: dict[Path, Path] = {}
    for path in paths:
        for file in path.rglob(Failure.file_name) if path.is_dir() else [path]:
            if file.name == Failure.file_name and not file.with_name(Record.file_name).exists():
                files.setdefault(file.resolve(), file)
    return sorted(files.values())


def _of_a_study(file: Path, roots: set[Path]) -> bool:
    folder = file.resolve()
    if folder in roots:
        return False
    folder = folder.parent
    while folder not in roots and folder != folder.parent:
        folder = folder.parent
        if (folder / SweepPlan.file_name).exists():
            return False
        if any((folder / name).exists() for name in STUDIES):
            return True
    return False
