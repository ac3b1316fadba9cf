"""The folder of a sweep: whose it is, what is finished in it, what failed."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gradsurgery.atomic import atomic_file
from gradsurgery.errors import ArgumentError, DataError, OutputError
from gradsurgery.layout import FAILURE_FILE, PLAN_FILE, VERSION
from gradsurgery.sweep.plan import Plan
from gradsurgery.sweep.runs import PlannedRun
from gradsurgery.training import Record
from gradsurgery.training.checkpoint import CHECKPOINT_FILE, remove_checkpoint
from gradsurgery.training.directory import check_same, claimed
from gradsurgery.training.record import RECORD_FILE
from gradsurgery.versioned import read_versioned

_BEGUN = (RECORD_FILE, CHECKPOINT_FILE)


def claim_folder(plan: Plan, runs: Sequence[PlannedRun], folder: Path) -> None:
    """Write `plan.json`, which lists the runs that belong in `folder`.

    A plan that holds all the runs that another plan has begun there takes its place, and the
    failures of runs that are given up with it go. Raises `ArgumentError`, and leaves everything as
    it is, where runs would be left that the plan does not hold.
    """
    path = folder / PLAN_FILE
    there = _read_plan(path)
    if there is not None:
        ours, theirs = {run.directory for run in runs}, {run["directory"] for run in there["runs"]}
        dropped = [folder / run for run in sorted(theirs - ours)]
        begun = [run for run in dropped if any((run / name).exists() for name in _BEGUN)]
        if begun:
            raise ArgumentError(
                f"{folder} belongs to another plan ({_difference(there['plan'], plan)}); "
                f"{len(begun)} of its runs, as {begun[0].relative_to(folder)}, are begun and not "
                "in this one; choose another output folder, or a plan that holds those runs too"
            )
        for run in dropped:
            (run / FAILURE_FILE).unlink(missing_ok=True)
        if ours == theirs:
            return
    content = {
        "version": VERSION,
        "plan": plan.model_dump(),
        "runs": [
            {
                "directory": run.directory,
                "data": run.data,
                "target": run.configuration.target,
                "method": run.configuration.method,
                "seed": run.configuration.seed,
                "without": run.configuration.without,
            }
            for run in runs
        ],
    }
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def finished_record(run: PlannedRun, folder: Path) -> Record | None:
    """The record of a run that is finished, None where there is none.

    Raises `DataError` where it is damaged or of another version, `ArgumentError` where it is of
    other options. Where the data lie and the device may differ.
    """
    path = folder / run.directory / RECORD_FILE
    if not path.exists():
        return None
    record = Record.load(path)
    there = record.configuration
    elsewhere = {"device": there.device}
    if record.data.name == run.data:
        elsewhere["data"] = there.data
    here = run.configuration.model_copy(update=elsewhere)
    check_same(here, there, path.parent)
    return record


def tidy(run: PlannedRun, folder: Path) -> None:
    """Remove what a process left that was killed between the record and the end of the run."""
    directory = folder / run.directory
    if (directory / CHECKPOINT_FILE).exists() or any(directory.glob(".*")):
        with suppress(OutputError), claimed(directory):  # busy: another is just about to do so
            remove_checkpoint(directory)


def write_failure(
    run: PlannedRun, folder: Path, *, attempts: int, error: str, traceback: str
) -> None:
    """Write `failure.json` into the run's folder."""
    content = {
        "version": VERSION,
        "configuration": run.configuration.model_dump(),
        "attempts": attempts,
        "error": error,
        "traceback": traceback,
    }
    with atomic_file(folder / run.directory / FAILURE_FILE) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def forget_failure(run: PlannedRun, folder: Path) -> None:
    """Remove the `failure.json` of a run that went well after all."""
    (folder / run.directory / FAILURE_FILE).unlink(missing_ok=True)


def _read_plan(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    cure = "delete it to let this plan have the folder, or choose another output folder"
    content = read_versioned(path, "plan of a sweep", VERSION, cure=cure)
    try:
        plan: dict[str, Any] = {"plan": dict(content["plan"]), "runs": list(content["runs"])}
        _ = [run["directory"] for run in plan["runs"]]
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{path} is not the plan of a sweep ({reason}); {cure}") from error
    return plan


def _difference(there: dict[str, Any], plan: Plan) -> str:
    """The parts, and of the options those, in which two plans differ."""
    here = plan.model_dump()
    before, after = _flat(there), _flat(here)
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    listed = [
        f"{name}: {before.get(name)!r:.60} there, {after.get(name)!r:.60} here" for name in names
    ]
    return "; ".join(listed) or "the data sets have changed"


def _flat(plan: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in plan.items():
        flat |= _flat(value) if isinstance(value, dict) else {name: value}
    return flat
