"""How long a sweep will take, from a few timed steps."""

import itertools
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gradsurgery.data import ImageSet, Source, draw_split, prepare
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.record import Record
from gradsurgery.sweep.run import Execution
from gradsurgery.sweep.runs import SweepRun
from gradsurgery.training import TrainingProgress, train

_STEPS = 4  # the first, which warms up, and three that are timed
_FORWARD_SHARE = 1 / 3  # of a forward and a backward pass: what an image that is tested costs

# Options that do not change what a step costs.
_FREE = ("target", "seed", "split_seed", "learning_rate", "weight_decay", "settings", "iterations")


class Estimate(NamedTuple):
    """runs: how many are to be done; seconds: one after the other, without the workers' start."""

    runs: int
    seconds: float


class _EnoughError(Exception):
    """Ends a run that has been timed."""


def estimate(
    runs: Sequence[SweepRun],
    records: Mapping[str, Record],
    sources: Mapping[str, Source],
    execution: Execution,
    *,
    timed: Callable[[int, int], None] = lambda done, total: None,
) -> Estimate:
    """The time of the runs without a record.

    A run costs what the finished runs of its kind have cost on average; where there is none, four
    steps of the real thing are taken in a temporary folder. Runs of a kind differ in target, seed,
    learning rate and other options that cost nothing.

    timed: called with how many kinds are timed, of how many.
    """
    finished: dict[str, list[float]] = {}
    for run in runs:
        if run.directory in records:
            finished.setdefault(_kind(run), []).append(records[run.directory].cost.seconds)
    todo = [run for run in runs if run.directory not in records]
    counts = Counter(_kind(run) for run in todo)
    one = {_kind(run): run for run in todo}
    total = 0.0
    for position, (kind, count) in enumerate(counts.items()):
        timed(position, len(counts))
        known = finished.get(kind)
        cost = statistics.mean(known) if known else _timed_cost(one[kind], sources, execution)
        total += cost * count
    timed(len(counts), len(counts))
    return Estimate(len(todo), total)


def _kind(run: SweepRun) -> str:
    options = run.configuration.model_dump(exclude=set(_FREE))
    return repr((run.data, sorted(options.items())))


def _timed_cost(run: SweepRun, sources: Mapping[str, Source], execution: Execution) -> float:
    """Seconds of a run: its steps, its validations, its tests."""
    c = run.configuration
    images = prepare(sources[c.data], size=c.image_size, cache=execution.cache, skip_bad=c.skip_bad)
    step = _seconds_per_step(c, images)
    split = draw_split(images, seed=c.split_seed).sizes()
    trained = c.sources(images.domains)
    validated = sum(split[domain]["validation"] for domain in trained)
    tested = 2 * sum(parts["test"] for parts in split.values())
    validations = -(-c.iterations // c.validate_every)
    an_image = step / (c.batch_size * len(trained)) * _FORWARD_SHARE
    return c.iterations * step + (validations * validated + tested) * an_image


def _seconds_per_step(configuration: RunConfiguration, images: ImageSet) -> float:
    times: list[float] = []

    def note(progress: TrainingProgress) -> None:
        times.append(time.perf_counter())
        if progress.done == _STEPS:
            raise _EnoughError

    try:
        with tempfile.TemporaryDirectory() as folder:
            train(configuration, Path(folder) / "run", note, opened=images)
    except _EnoughError:
        pass
    between = [after - before for before, after in itertools.pairwise(times)]
    return statistics.median(between) if between else 0.0
