"""A sweep from its plan to its records, and the folder that holds them."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradsurgery.atomic import claimed, remove_lock, shared
from gradsurgery.data import Source, digest_of, reopened
from gradsurgery.documents.configuration import RunConfiguration, options_of
from gradsurgery.documents.plan import Failure, Plan, PlannedRun, SweepPlan, difference
from gradsurgery.documents.record import Record
from gradsurgery.errors import ArgumentError, GradsurgeryError, OutputError
from gradsurgery.sweep.launcher import Event, Launcher, Outcome, Task
from gradsurgery.sweep.runs import (
    SweepRun,
    check_networks,
    existing_records,
    finished_record,
    planned,
)
from gradsurgery.sweep.schedule import Execution, Schedule, Show, SweepProgress
from gradsurgery.training import TrainingProgress
from gradsurgery.training.checkpoint import CHECKPOINT_FILE, changed_data, remove_checkpoint
from gradsurgery.training.images_used import check_divided, split_now
from gradsurgery.training.progress import ProgressCallback
from gradsurgery.training.run import changed_since, prepare_images

_BEGUN = (Record.file_name, CHECKPOINT_FILE)
_BUSY = 1.0  # seconds before a run that another process works on is asked for again
_WAIT = 0.5  # seconds between two looks at the clock


def run_sweep(
    plan: Plan,
    sources: Mapping[str, Source],
    folder: Path,
    *,
    launch: Callable[[], Launcher],
    check: Callable[[], None] = lambda: None,
    execution: Execution,
    show: Show,
) -> dict[str, Outcome]:
    """Do the runs of `plan` that `folder` has no record of.

    The same call again goes on where an earlier one ended, however it ended, and several processes
    may share the work on one folder: none does a run that another is doing.

    Args:
        plan: what to run.
        sources: its data sets, opened.
        folder: receives `plan.json`, and a folder for every run.
        launch: starts the launcher once there is work for it.
        check: raises where `launch` would; called before any work, where there is some.
        execution: how runs are worked on.
        show: told about every change.

    Returns the outcomes of the runs that failed, by the run's directory; each has left a
    `failure.json` where its record would be. Raises `ArgumentError`, `DataError` or `WeightsError`
    before any work where the plan, the folder or a network's weights cannot be used.
    """
    runs = planned(plan, sources)
    records = existing_records(runs, folder)
    todo = [run for run in runs if run.directory not in records]
    if todo:
        check()
    check_networks(todo, sources)
    with _held(plan, runs, folder, todo):
        progress = SweepProgress(len(runs), workers=1)
        prepare_runs(todo, sources, execution, lambda at: show(progress.decoding(at), ""))
        progress.running.clear()
        for run in runs:
            if run.directory in records:
                tidy(run, folder)
                progress.finished(run, records[run.directory], before=True)
        for line in ("", *_told_of_changes(runs, records, sources, execution.cache)):
            show(progress, line)
        if not todo:
            return {}
        try:
            with launch() as launcher:
                progress.workers = launcher.workers
                return _Sweep(todo, folder.absolute(), launcher, execution, progress, show).run()
        finally:  # a worker may have been ended amid anything
            for run in todo:
                remove_lock(folder / run.directory)


def _told_of_changes(
    runs: Sequence[SweepRun],
    records: Mapping[str, Record],
    sources: Mapping[str, Source],
    cache: Path | None,
) -> Iterator[str]:
    """Lines on what is not as it was when runs were finished: code from elsewhere, and data."""
    told: dict[str, list[str]] = {}
    opened: dict[tuple[Any, ...], tuple[Source, str] | None] = {}
    splits: dict[tuple[Any, ...], str] = {}
    for run in (each for each in runs if each.directory in records):
        c, record = run.configuration, records[run.directory]
        for name in changed_since(c, record):
            told.setdefault(f"the code of {name} has changed", []).append(run.directory)
        images = run.images
        with suppress(GradsurgeryError):  # what cannot be read is needed for runs to be done
            if images not in opened:
                opened[images] = None
                source = reopened(sources[c.data], c.data, c.reading)
                opened[images] = source, digest_of(source, c.image_size, cache)
            if (there := opened[images]) is None:
                continue
            division = (*images, record.data.digest, run.division)
            if division not in splits:
                splits[division] = split_now(c, record, *there)
            then = record.data.digest, record.split.digest
            if changed := changed_data(run.data, then, (there[1], splits[division])):
                told.setdefault(changed, []).append(run.directory)
    for changed, found in told.items():
        yield (
            f"{changed} since {len(found)} of these runs were finished (such as {found[0]}); to "
            "run them with what is there now, name another folder (--out), or delete theirs"
        )


@dataclass
class _Sweep:
    """The runs on their way through a launcher."""

    todo: Sequence[SweepRun]
    folder: Path
    launcher: Launcher
    execution: Execution
    progress: SweepProgress
    show: Show

    def __post_init__(self) -> None:
        self._runs = {run.directory: run for run in self.todo}
        self._schedule = Schedule(self._runs, self.execution.retries)
        self._said: set[str] = set()

    def run(self) -> dict[str, Outcome]:
        self.show(self.progress, "")
        while self._schedule.unfinished:
            self._start_runs()
            if self._schedule.running:
                for event in self.launcher.wait(_WAIT):
                    self._handle(event)
            elif self._schedule.unfinished:
                time.sleep(_WAIT)
        return self._schedule.failed

    def _start_runs(self) -> None:
        while len(self._schedule.running) < self.launcher.workers:
            key = self._schedule.next(time.monotonic())
            if key is None:
                break
            run = self._runs[key]
            if (self.folder / key / Record.file_name).exists():  # another process has been faster
                self._finish(run, before=True)
                continue
            self.progress.running[run.title] = None
            self.launcher.submit(key, self._task(run))
            self._log("")

    def _handle(self, event: Event) -> None:
        run, news = self._runs[event.key], event.news
        if isinstance(news, TrainingProgress):
            self.progress.running[run.title] = news
            note = news.note if news.note not in self._said else None  # many runs have the same
            self._said |= {note} if note else set()
            self._log(f"{run.title}: {note}" if note else "")
            return
        if news.state == "done":
            self._finish(run, before=news.before)  # by another process, meanwhile
            return
        self.progress.running.pop(run.title, None)
        if news.state == "busy":
            self._put_aside(run)
        elif self._schedule.stopped(run.directory, news):
            self._give_up(run, news)
        else:
            self._log(f"{run.title}: {news.error}; again")

    def _finish(self, run: SweepRun, *, before: bool) -> None:
        self.progress.running.pop(run.title, None)
        try:
            record = finished_record(run, self.folder)
        except GradsurgeryError as error:
            self._schedule.fail(run.directory, Outcome("failed", str(error)))
            self._give_up(run, self._schedule.failed[run.directory])
            return
        if record is None:  # a network's file system may show it late: look again
            self._put_aside(run)
            return
        self._schedule.finished(run.directory)
        self.progress.finished(run, record, before=before)
        if before:
            tidy(run, self.folder)
        (self.folder / run.directory / Failure.file_name).unlink(missing_ok=True)
        self._log(f"{run.title}: {_result(record)}{' (by another process)' if before else ''}")

    def _put_aside(self, run: SweepRun) -> None:
        self._schedule.put_aside(run.directory, time.monotonic() + _BUSY)
        self._log("")

    def _give_up(self, run: SweepRun, outcome: Outcome) -> None:
        self.progress.failed += 1
        line = f"{run.title}: failed: {outcome.error}"
        schedule, key = self._schedule, run.directory
        failure = Failure(
            configuration=run.configuration,
            attempts=schedule.attempts[key] + schedule.losses[key],
            error=outcome.error,
            traceback=outcome.traceback,
        )
        try:
            failure.save(self.folder / key)
        except OutputError as error:
            line += f" ({error})"
        self._log(line)

    def _log(self, line: str) -> None:
        self.progress.aside = self._schedule.aside
        p = self.progress
        if line:
            line = f"[{p.found + p.done + p.failed}/{p.total}] {line}"
        self.show(p, line)

    def _task(self, run: SweepRun) -> Task:
        return Task(
            options=run.configuration.model_dump(),
            folder=str(self.folder),
            directory=str(self.folder / run.directory),
            cache=None if self.execution.cache is None else str(self.execution.cache.absolute()),
            loggers=self.execution.loggers,
            working_directory=str(Path.cwd()),
        )


def prepare_runs(
    runs: Sequence[SweepRun],
    sources: Mapping[str, Source],
    execution: Execution,
    progress: ProgressCallback,
) -> None:
    """Decode what the runs need once, before workers ask for it, and see whether it is enough.

    Raises `DataError` where a run would have too few images.
    """
    needed: dict[tuple[Any, ...], dict[str, RunConfiguration]] = {}
    for run in runs:
        needed.setdefault(run.images, {}).setdefault(run.division, run.configuration)
    for _, divided in sorted(needed.items()):
        c, *_ = divided.values()
        source = reopened(sources[c.data], c.data, c.reading)
        images = prepare_images(source, c, execution.cache, progress)
        for each in divided.values():
            check_divided(each, images)


def _result(record: Record) -> str:
    best = record.result.best
    cost = f"validation {best.validation_accuracy:.1%}, {record.cost.seconds:.1f} s"
    if best.target_accuracy is None:
        return f"trained on all domains ({cost})"
    return f"accuracy on {record.configuration.target} {best.target_accuracy:.1%} ({cost})"


def _held(
    plan: Plan, runs: Sequence[SweepRun], folder: Path, todo: Sequence[SweepRun]
) -> AbstractContextManager[None]:
    """Holds the folder for these runs, together with other processes that work on them there.

    A folder in which all is done may be one that can only be read.
    """
    there = None if todo else _plan_in(folder)
    if there and {run.directory for run in there.runs} == {run.directory for run in runs}:
        return nullcontext()
    return shared(folder, lambda alone: claim_folder(plan, runs, folder, alone=alone))


def claim_folder(plan: Plan, runs: Sequence[SweepRun], folder: Path, *, alone: bool = True) -> None:
    """Write `plan.json`, which lists the runs that belong in `folder`.

    A plan that holds all the runs that another plan has begun there takes its place, and the
    failures of runs that are given up with it go. Raises `ArgumentError`, and leaves everything as
    it is, where runs would be left that the plan does not hold.

    alone: whether no other sweep works there, which may begin any of its runs.
    """
    if (there := _plan_in(folder)) is not None:
        dropped = given_up(plan, runs, folder)
        if dropped and not alone:
            raise ArgumentError(
                f"another sweep is working in {folder}, with other "
                f"{difference(there.plan, plan)}; wait for it to end, or choose another folder "
                "(--out)"
            )
        for run in dropped:
            (run / Failure.file_name).unlink(missing_ok=True)
        if [run.directory for run in runs] == [run.directory for run in there.runs]:
            return
    which = set(options_of("identity"))
    planned = [
        PlannedRun(
            directory=run.directory, data=run.data, **run.configuration.model_dump(include=which)
        )
        for run in runs
    ]
    SweepPlan(plan=plan.model_dump(), runs=planned).save(folder)


def given_up(plan: Plan, runs: Sequence[SweepRun], folder: Path) -> list[Path]:
    """The runs of the plan in `folder` that this one lacks; `ArgumentError` if any is begun."""
    if (there := _plan_in(folder)) is None:
        return []
    ours, theirs = {run.directory for run in runs}, {run.directory for run in there.runs}
    dropped = [folder / run for run in sorted(theirs - ours)]
    begun = [run for run in dropped if any((run / name).exists() for name in _BEGUN)]
    if begun:
        raise ArgumentError(
            f"{folder} belongs to another plan, with other {difference(there.plan, plan)}; "
            f"choose another folder (--out), or add to that plan: {len(begun)} of its runs, "
            f"as {begun[0].relative_to(folder)}, are begun and not in this one"
        )
    return dropped


def _plan_in(folder: Path) -> SweepPlan | None:
    return SweepPlan.load(folder) if (folder / SweepPlan.file_name).exists() else None


def tidy(run: SweepRun, folder: Path) -> None:
    """Remove what a process left that was killed between the record and the end of the run."""
    directory = folder / run.directory
    if run.configuration.keep_checkpoint:
        return
    left = (CHECKPOINT_FILE, "best-*.safetensors", ".*")
    if any(path for pattern in left for path in directory.glob(pattern)):
        with suppress(OutputError), claimed(directory):  # busy: another is just about to do so
            remove_checkpoint(directory)
