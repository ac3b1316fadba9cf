"""The folder of a sweep: whose it is, what is finished in it, what failed."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gradsurgery.documents.configuration import options_of
from gradsurgery.documents.plan import Failure, Plan, PlannedRun, SweepPlan
from gradsurgery.documents.record import Record
from gradsurgery.errors import ArgumentError, OutputError
from gradsurgery.sweep.runs import SweepRun
from gradsurgery.training.checkpoint import CHECKPOINT_FILE, remove_checkpoint
from gradsurgery.training.directory import check_same, claimed

_BEGUN = (Record.file_name, CHECKPOINT_FILE)


def claim_folder(plan: Plan, runs: Sequence[SweepRun], folder: Path) -> None:
    """Write `plan.json`, which lists the runs that belong in `folder`.

    A plan that holds all the runs that another plan has begun there takes its place, and the
    failures of runs that are given up with it go. Raises `ArgumentError`, and leaves everything as
    it is, where runs would be left that the plan does not hold.
    """
    if (folder / SweepPlan.file_name).exists():
        there = SweepPlan.load(folder)
        ours, theirs = {run.directory for run in runs}, {run.directory for run in there.runs}
        dropped = [folder / run for run in sorted(theirs - ours)]
        begun = [run for run in dropped if any((run / name).exists() for name in _BEGUN)]
        if begun:
            raise ArgumentError(
                f"{folder} belongs to another plan, with other {_difference(there.plan, plan)}; "
                f"choose another folder with --out, or add to that plan: {len(begun)} of its runs, "
                f"as {begun[0].relative_to(folder)}, are begun and not in this one"
            )
        for run in dropped:
            (run / Failure.file_name).unlink(missing_ok=True)
        if ours == theirs:
            return
    which = set(options_of("identity"))
    planned = [
        PlannedRun(
            directory=run.directory, data=run.data, **run.configuration.model_dump(include=which)
        )
        for run in runs
    ]
    SweepPlan(plan=plan.model_dump(), runs=planned).save(folder)


def finished_record(run: SweepRun, folder: Path) -> Record | None:
    """The record of a run that is finished, None where there is none.

    Raises `DataError` where it is damaged or of another version, `ArgumentError` where it is of
    other options. Where the data lie and the device may differ.
    """
    path = folder / run.directory / Record.file_name
    if not path.exists():
        return None
    record = Record.load(path)
    moved = record.data.name == run.data
    check_same(run.configuration, record.configuration, path.parent, *([] if moved else ["data"]))
    return record


def tidy(run: SweepRun, folder: Path) -> None:
    """Remove what a process left that was killed between the record and the end of the run."""
    directory = folder / run.directory
    if run.configuration.keep_checkpoint:
        return
    left = (CHECKPOINT_FILE, "best-*.safetensors", ".*")
    if any(path for pattern in left for path in directory.glob(pattern)):
        with suppress(OutputError), claimed(directory):  # busy: another is just about to do so
            remove_checkpoint(directory)


def _difference(there: dict[str, Any], plan: Plan) -> str:
    """The parts, and of the options those, in which two plans differ."""
    before, after = _flat(there), _flat(plan.model_dump())
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    listed = [
        f"{name} ({_spoken(before.get(name))} there, {_spoken(after.get(name))} here)"
        for name in names
    ]
    return ", ".join(listed) or "images"


def _spoken(value: Any) -> str:
    """A part of a plan as a person would type it."""
    if value is None:
        return "not given"
    return f"{','.join(map(str, value)) if isinstance(value, list) else str(value):.60}"


def _flat(plan: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in plan.items():
        flat |= _flat(value) if isinstance(value, dict) else {name: value}
    return flat
