"""Which run of a sweep is next, how the sweep gets on, and how long it will take."""

import itertools
import statistics
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gradsurgery.backbones import Backbone
from gradsurgery.data import ImageSet, Source, image_loader, reopened, split_of
from gradsurgery.documents.configuration import RunConfiguration, costly_options
from gradsurgery.documents.record import Record
from gradsurgery.errors import ArgumentError
from gradsurgery.sweep.launcher import Outcome
from gradsurgery.sweep.runs import SweepRun
from gradsurgery.training import TrainingProgress, train
from gradsurgery.training.device import (
    autocast_factory,
    computing_with,
    resolve_device,
    stores_channels_last,
)
from gradsurgery.training.frozen_features import (
    features_kept,
    have_file,
    looked_at,
    may_keep_features,
)
from gradsurgery.training.images_used import ImagesUsed
from gradsurgery.training.learner import build_learner
from gradsurgery.training.outcome import evaluate
from gradsurgery.training.run import network_of, prepare_images

_LOSSES = 10  # a run whose worker dies so often kills its workers


@dataclass(frozen=True)
class Execution:
    """How runs are worked on; none of it changes their results.

    cache: folder of the decoded images; None is the default one.
    retries: how often a run that fails is tried again.
    loggers: names of what the figures of runs go to.
    """

    cache: Path | None = None
    retries: int = 0
    loggers: tuple[str, ...] = ()


@dataclass
class Schedule:
    """The runs of a sweep by key. A run that another process works on is asked for again later.

    retries: how often a run that failed is tried again. A worker that is lost is no failure of
        its run, up to ten times.
    """

    keys: Iterable[str]
    retries: int
    running: set[str] = field(default_factory=set)
    failed: dict[str, Outcome] = field(default_factory=dict)
    attempts: Counter[str] = field(default_factory=Counter)
    losses: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._waiting = deque(self.keys)
        self._aside: dict[str, float] = {}

    @property
    def unfinished(self) -> bool:
        """Whether any run is still to be done."""
        return bool(self._waiting or self._aside or self.running)

    @property
    def aside(self) -> int:
        """How many runs another process works on."""
        return len(self._aside)

    def next(self, now: float) -> str | None:
        """A run to start, None where there is none at the time `now` (seconds)."""
        if self._waiting:
            key = self._waiting.popleft()
        else:
            due = [key for key, until in self._aside.items() if until <= now]
            if not due:
                return None
            key = due[0]
            del self._aside[key]
        self.running.add(key)
        return key

    def finished(self, key: str) -> None:
        """The run's record is there."""
        self.running.discard(key)

    def fail(self, key: str, outcome: Outcome) -> None:
        """The run is given up at once."""
        self.running.discard(key)
        self.failed[key] = outcome

    def put_aside(self, key: str, until: float) -> None:
        """Another process works on the run: ask again at the time `until`."""
        self.running.discard(key)
        self._aside[key] = until

    def stopped(self, key: str, outcome: Outcome) -> bool:
        """The run failed or its worker was lost; whether it is given up."""
        counts = self.losses if outcome.state == "lost" else self.attempts
        counts[key] += 1
        limit = _LOSSES if outcome.state == "lost" else self.retries
        if counts[key] > limit:
            self.fail(key, outcome)
            return True
        self.running.discard(key)
        if outcome.state == "lost":  # goes on from its checkpoint at once
            self._waiting.appendleft(key)
        else:
            self._waiting.append(key)
        return False


@dataclass
class SweepProgress:
    """The runs of a sweep by what has become of them.

    found: how many were finished before.
    running: how far each run under way is; None before its first word.
    aside: how many runs another process works on.
    best: the highest target accuracy so far in each (data set, target), and its method.
    """

    total: int
    workers: int
    found: int = 0
    done: int = 0
    failed: int = 0
    aside: int = 0
    running: dict[str, TrainingProgress | None] = field(default_factory=dict)
    best: dict[tuple[str, str], tuple[float, str]] = field(default_factory=dict)
    _seconds: list[float] = field(default_factory=list)

    def decoding(self, at: TrainingProgress) -> "SweepProgress":
        """Itself, with how many images are decoded in place of the runs under way."""
        self.running = {"decoding": at}
        return self

    def finished(self, run: SweepRun, record: Record, *, before: bool) -> None:
        """Count a run with a record."""
        self.found += before
        self.done += not before
        self._seconds.append(record.cost.seconds)
        accuracy = record.result.best.target_accuracy
        if accuracy is not None and not run.configuration.without:
            cell = (run.data, run.configuration.target)
            found = (accuracy, run.configuration.method)
            self.best[cell] = max(self.best.get(cell, found), found, key=lambda each: each[0])

    def seconds_left(self) -> float | None:
        """From what the runs so far have taken; None before the first."""
        left = self.total - self.found - self.done - self.failed
        if not self._seconds or not left:
            return None if left else 0.0
        return statistics.mean(self._seconds) * left / min(self.workers, left)


Show = Callable[[SweepProgress, str], None]
"""Called with every change; the text is a line for a log, "" for a mere step of a run."""


_STEPS = 4  # the first, which warms up, and at most three that are timed
_LONG = 10.0  # seconds after which no further step is timed
_TESTED = 128  # images that are evaluated to see what one costs


class Estimate(NamedTuple):
    """runs: how many are to be done; seconds: one after the other, without the workers' start.

    timed: how many kinds of run were timed here; the other kinds are known from finished runs.
    once: seconds, among these, of what one worker does while the others wait for it.
    """

    runs: int
    seconds: float
    timed: int
    once: float = 0.0

    def with_workers(self, workers: int) -> float:
        """Seconds with so many workers."""
        return self.once + (self.seconds - self.once) / max(1, min(workers, self.runs))


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

    A run costs what the finished runs of its kind have cost on average; where there is none, a few
    steps and the evaluation of 128 images are timed in a temporary folder. Runs of a kind differ
    in target, seed, learning rate and other options that cost nothing. What frozen layers make of
    the images counts once for all runs that share it.

    timed: called with how many kinds are timed, of how many.
    """
    finished: dict[str, list[float]] = {}
    for run in runs:
        if run.directory in records:
            finished.setdefault(_kind(run), []).append(records[run.directory].cost.seconds)
    todo = [(run, _kind(run)) for run in runs if run.directory not in records]
    counts = Counter(kind for _, kind in todo)
    one = {kind: run for run, kind in todo}
    unknown = [kind for kind in counts if kind not in finished]
    costs = {kind: statistics.mean(seconds) for kind, seconds in finished.items()}
    once: dict[str, float] = {}
    for position, kind in enumerate(unknown):
        timed(position, len(unknown))
        try:
            costs[kind], once[kind] = _timed_cost(one[kind], sources, execution)
        except ArgumentError as error:
            method = one[kind].configuration.method
            raise ArgumentError(f"{method} on {one[kind].data} fails: {error}") from error
    timed(len(unknown), len(unknown))
    shared: dict[Any, float] = {}
    for run, kind in todo:
        features = _features_of(run.configuration)
        shared[features] = max(once.get(kind, 0.0), shared.get(features, 0.0))  # some do without
    total = sum(costs[kind] * count for kind, count in counts.items()) + sum(shared.values())
    awaited = sum(seconds for (*_, seed), seconds in shared.items() if seed is None)
    return Estimate(len(todo), total, len(unknown), awaited)


def _features_of(c: RunConfiguration) -> tuple[Any, ...]:
    """What two runs on frozen layers have in common where these are passed once for both.

    At the end a seed, where a network of its own is drawn from it.
    """
    seed = c.seed if c.weights == "none" else None
    return c.data, c.backbone, c.weights, c.image_size, c.precision, seed


def _kind(run: SweepRun) -> str:
    return repr((run.data, run.configuration.model_dump(include=set(costly_options()))))


def _timed_cost(
    run: SweepRun, sources: Mapping[str, Source], execution: Execution
) -> tuple[float, float]:
    """Seconds of a run, its steps, its validations, its tests; and what is done once for many."""
    c = run.configuration
    source = reopened(sources[c.data], c.data, c.reading)
    images = prepare_images(source, c, execution.cache, lambda _: None)
    if may_keep_features(c) and (kept := _timed_on_features(c, images)) is not None:
        step, an_image = kept
        return c.iterations * step, len(images.label) * an_image
    step, an_image = _timed_step_and_image(c, images)
    split = split_of(c, images, c.seed_of_split).sizes()
    validated = sum(split[domain]["validation"] for domain in c.sources(images.domains))
    tested = 2 * sum(parts["test"] for parts in split.values())
    validations = -(-c.iterations // c.validate_every)
    return c.iterations * step + (validations * validated + tested) * an_image, 0.0


def _timed_on_features(
    configuration: RunConfiguration, images: ImageSet
) -> tuple[float, float] | None:
    """Seconds of a step on features, and of the frozen layers for an image.

    None where the run does without; the features are those of the first step's images alone.
    """
    c, device = configuration, resolve_device(configuration.device)
    with computing_with(c.threads, device, c.precision):
        learner = build_learner(c, network_of(c, images), device)
        used = ImagesUsed.of(c, images)
        used.prepare(learner.algorithm, c, learner.backbone, device)
        few = used.batches(c).indices_at(0).reshape(-1)
        if 2 * len(used.split.unused) > len(images.label):
            return None
        pixels, labels = images.images[few], images.label[few]
        loader = learner.loader(replace(images, images=pixels, label=labels, folder=None))
        start, first = time.perf_counter(), np.arange(len(few))
        with features_kept(learner, loader, c, lambda _: first[None], lambda _: None) as kept:
            if kept is loader:
                return None
            passed = len(few) + 2 * len(looked_at(few))
            an_image = (time.perf_counter() - start) / passed
            if have_file(learner, learner.loader(images), c):
                an_image = 0.0
            rows, classes = kept.fetch(first)()
            batches = list(zip(rows.split(c.batch_size), classes.split(c.batch_size), strict=True))
            moments = [time.perf_counter()]
            for step in range(1, _STEPS + 1):
                learner.take(batches, step)
                moments.append(time.perf_counter())
    between = [after - before for before, after in itertools.pairwise(moments)]
    return statistics.median(between[1:]), an_image


def _timed_step_and_image(configuration: RunConfiguration, images: ImageSet) -> tuple[float, float]:
    """Seconds of a training step, and of one image that is evaluated."""
    chosen = np.arange(min(_TESTED, len(images.label)))
    moments: list[float] = []
    last = min(_STEPS, configuration.iterations)
    an_image = 0.0

    def look(step: int, backbone: Backbone) -> None:
        nonlocal an_image
        moments.append(time.perf_counter())
        if step < last and (step < 2 or moments[-1] - moments[1] < _LONG):
            return
        device = resolve_device(configuration.device)
        autocast = autocast_factory(device, configuration.precision)
        loader = image_loader(
            images,
            backbone.mean,
            backbone.std,
            device=device,
            channels_last=stores_channels_last(configuration, device, backbone.model),
        )
        for _ in range(2):  # the first warms up
            start = time.perf_counter()
            evaluate(backbone, loader, chosen, autocast=autocast)
            an_image = (time.perf_counter() - start) / len(chosen)
        raise _EnoughError

    unvalidated = configuration.model_copy(update={"validate_every": configuration.iterations})
    try:
        with tempfile.TemporaryDirectory() as folder:
            train(unvalidated, Path(folder) / "run", opened=images, observe=look)
    except _EnoughError:
        pass
    between = [after - before for before, after in itertools.pairwise(moments)]
    return statistics.median(between[1:] or between), an_image
