"""What a sweep's folder says beside its records: the runs it planned, and those that failed."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gradsurgery.errors import DataError
from gradsurgery.layout import FAILURE_FILE, PLAN_FILE, VERSION
from gradsurgery.versioned import read_versioned


@dataclass(frozen=True)
class PlannedRun:
    """A run that a sweep's folder should have; its record lies in `directory`."""

    directory: Path
    data: str
    target: str
    method: str
    seed: int
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """A run that was given up after `attempts`; `configuration` as its record would have it."""

    path: Path
    configuration: dict[str, Any]
    attempts: int
    error: str
    traceback: str


def read_plan(folder: Path) -> list[PlannedRun]:
    """The runs of `folder`/plan.json, in the order of the plan.

    Raises `DataError` where there is none, it is cut off, of another version or no plan.
    """
    path = folder / PLAN_FILE
    runs = read_versioned(path, "plan of a sweep", VERSION, cure="plan it again").get("runs")
    if not isinstance(runs, list) or not runs:
        raise DataError(f"{path} is no plan of a sweep: it has no list of runs; plan it again")
    planned = []
    for number, run in enumerate(runs, start=1):
        values: dict[str, Any] = {}
        for name in ("directory", "data", "target", "method", "seed"):
            values[name] = run.get(name) if isinstance(run, dict) else None
            kind = int if name == "seed" else str
            if not isinstance(values[name], kind) or isinstance(values[name], bool):
                raise DataError(
                    f"{path}: run {number} has the {name} {values[name]!r:.80}, expected "
                    f"{kind.__name__}; plan it again"
                )
        directory = PurePosixPath(values.pop("directory"))
        if directory.is_absolute() or ".." in directory.parts:
            raise DataError(
                f"{path}: run {number} has the directory {str(directory)!r:.80}, expected one "
                "within the folder; plan it again"
            )
        without = run.get("without", [])
        if not isinstance(without, list) or not all(isinstance(name, str) for name in without):
            raise DataError(f"{path}: run {number} leaves out {without!r:.80}, expected names")
        planned.append(PlannedRun(folder / directory, **values, without=tuple(without)))
    return planned


def find_plans(paths: Iterable[Path]) -> list[PlannedRun] | None:
    """The planned runs of those of `paths` that are folders with a plan, None without any.

    Raises `DataError` as `read_plan` does.
    """
    folders: dict[Path, Path] = {}
    for path in paths:
        if (path / PLAN_FILE).is_file():
            folders.setdefault(path.resolve(), path)
    plans = [read_plan(folder) for folder in folders.values()]
    return [run for plan in plans for run in plan] if plans else None


def read_failures(paths: Iterable[Path]) -> list[Failure]:
    """The failures at `paths`, folders searched for `**/failure.json`, by path.

    One beside a finished run's record is left out: a later attempt succeeded. Raises `DataError`
    for a file that is cut off, of another version or no failure.
    """
    files = {
        file.resolve(): file
        for path in paths
        for file in (path.rglob(FAILURE_FILE) if path.is_dir() else [path])
        if file.name == FAILURE_FILE and not file.with_name("record.json").exists()
    }
    failures = []
    for file in sorted(files.values()):
        content = read_versioned(file, "account of a failed run", VERSION, cure="repeat the run")
        kinds = {"configuration": dict, "attempts": int, "error": str, "traceback": str}
        for name, kind in kinds.items():
            if not isinstance(content.get(name), kind):
                raise DataError(
                    f"{file}: {name} is {content.get(name)!r:.80}, expected {kind.__name__}; "
                    "repeat the run"
                )
        failures.append(Failure(file, **{name: content[name] for name in kinds}))
    return failures
