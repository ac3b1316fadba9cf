"""How long a sweep will take: from its finished runs, or from a few timed steps."""

import itertools
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gradsurgery.backbones import Backbone
from gradsurgery.data import ImageSet, Source, image_loader, prepare, reopened, split_of
from gradsurgery.documents.configuration import RunConfiguration, costly_options
from gradsurgery.documents.record import Record
from gradsurgery.sweep.run import Execution
from gradsurgery.sweep.runs import SweepRun
from gradsurgery.training import train
from gradsurgery.training.device import autocast_factory, resolve_device, stores_channels_last
from gradsurgery.training.evaluation import evaluate

_STEPS = 4  # the first, which warms up, and three that are timed
_TESTED = 128  # images that are evaluated to see what one costs


class Estimate(NamedTuple):
    """runs: how many are to be done; seconds: one after the other, without the workers' start.

    timed: how many kinds of run were timed here; the other kinds are known from finished runs.
    """

    runs: int
    seconds: float
    timed: int


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
    steps and the evaluation of 128 images are timed in a temporary folder. Runs of a kind differ
    in target, seed, learning rate and other options that cost nothing.

    timed: called with how many kinds are timed, of how many.
    """
    finished: dict[str, list[float]] = {}
    for run in runs:
        if run.directory in records:
            finished.setdefault(_kind(run), []).append(records[run.directory].cost.seconds)
    todo = [run for run in runs if run.directory not in records]
    counts = Counter(_kind(run) for run in todo)
    one = {_kind(run): run for run in todo}
    unknown = [kind for kind in counts if kind not in finished]
    costs = {kind: statistics.mean(seconds) for kind, seconds in finished.items()}
    for position, kind in enumerate(unknown):
        timed(position, len(unknown))
        costs[kind] = _timed_cost(one[kind], sources, execution)
    timed(len(unknown), len(unknown))
    total = sum(costs[kind] * count for kind, count in counts.items())
    return Estimate(len(todo), total, len(unknown))


def _kind(run: SweepRun) -> str:
    return repr((run.data, run.configuration.model_dump(include=set(costly_options()))))


def _timed_cost(run: SweepRun, sources: Mapping[str, Source], execution: Execution) -> float:
    """Seconds of a run: its steps, its validations, its tests."""
    c = run.configuration
    images = prepare(
        reopened(sources[c.data], c.data, c.reading),
        size=c.image_size,
        cache=execution.cache,
        skip_bad=c.skip_bad,
    )
    step, an_image = _timed_step_and_image(c, images)
    split = split_of(c, images, c.seed_of_split).sizes()
    validated = sum(split[domain]["validation"] for domain in c.sources(images.domains))
    tested = 2 * sum(parts["test"] for parts in split.values())
    validations = -(-c.iterations // c.validate_every)
    return c.iterations * step + (validations * validated + tested) * an_image


def _timed_step_and_image(configuration: RunConfiguration, images: ImageSet) -> tuple[float, float]:
    """Seconds of a training step, and of one image that is evaluated."""
    chosen = np.arange(min(_TESTED, len(images.label)))
    moments: list[float] = []
    last = min(_STEPS, configuration.iterations)
    an_image = 0.0

    def look(step: int, backbone: Backbone) -> None:
        nonlocal an_image
        moments.append(time.perf_counter())
        if step < last:
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
