"""How a run gets on: the figures of its steps, left on the device until somebody looks, and
what it tells while it works.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from gradsurgery.engine import BackwardResult
from gradsurgery.errors import NonFiniteError

_UNREAD_SECONDS = 1.0
"""How long an accelerator works before it is waited for, where nothing else asks for figures."""

_Moment = Any
"""A time in seconds, or an event on a GPU."""


class StepFigures(NamedTuple):
    """What is known of a step that has been read.

    loss: mean over the source domains.
    agreeing: fraction of the components on which they agree; None where there is none.
    cosine: mean over the pairs of domains; None for rules without inner products.
    """

    step: int
    loss: float
    agreeing: float | None
    cosine: float | None


class UnreadSteps:
    """Results of steps in the order of the steps; to read them is to wait for the device.

    explain: the error to raise for one that step `step` has met.
    scaled: whether a loss scaler sees to gradients that are not finite.
    """

    def __init__(
        self, explain: Callable[[NonFiniteError, int], NonFiniteError], *, scaled: bool
    ) -> None:
        self._explain = explain
        self._scaled = scaled
        self._results: list[tuple[int, BackwardResult]] = []

    def add(self, step: int, result: BackwardResult) -> None:
        """Keep the result of a step."""
        self._results.append((step, result))

    def check(self) -> None:
        """Raise `NonFiniteError` for the first step that met a number that is not finite."""
        unchecked = [each for each in self._results if each[1].found_inf is not None]
        losses, found = _values("losses", unchecked), _values("found_inf", unchecked)
        for i, (step, result) in enumerate(unchecked):
            if losses[i].isfinite().all() and (self._scaled or not found[i]):
                continue
            try:
                result.check()
            except NonFiniteError as error:
                raise self._explain(error, step) from error

    def read(self) -> list[StepFigures]:
        """The figures of the steps that were added since the last reading; raises as `check`."""
        self.check()
        kept, self._results = self._results, []
        losses = _values("losses", kept)
        agreement, cosines = _values("agreement", kept), _values("cosines", kept)
        return [
            StepFigures(
                step,
                loss=float(losses[i].mean()),
                agreeing=None if agreement is None else _known(float(agreement[i])),
                cosine=None if cosines is None else _mean_of_pairs(cosines[i]),
            )
            for i, (step, _) in enumerate(kept)
        ]


class StepClock:
    """The time that steps take, and how much of it passes without images to compute on.

    It does not wait for the device: where that has a clock of its own, the moments are noted there.

        start → (images_are_there → step_ended)* → images_are_there → stop
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._waits: list[tuple[_Moment, _Moment]] = []
        self._started = 0.0
        self._waiting_since: _Moment = 0.0

    def start(self) -> None:
        """A step begins, and waits for its images; what lay before does not count."""
        self._started = time.perf_counter()
        self._waiting_since = self._moment()

    def images_are_there(self) -> None:
        """The step computes from here on."""
        self._waits.append((self._waiting_since, self._moment()))

    def step_ended(self) -> None:
        """The next step waits for its images from here on."""
        self._waiting_since = self._moment()

    def wants_reading(self) -> bool:
        """Whether it is time to look at the figures: always on a processor, which needs no wait."""
        if self._device.type == "cpu":
            return True
        return time.perf_counter() - self._started >= _UNREAD_SECONDS

    def stop(self) -> tuple[float, float]:
        """Seconds since `start`, and those of them that went by without images.

        The device has finished what it was given.
        """
        seconds = time.perf_counter() - self._started
        waited = sum((_seconds_between(*wait) for wait in self._waits), 0.0)
        self._waits.clear()
        return seconds, min(waited, seconds)

    def _moment(self) -> _Moment:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def _seconds_between(begin: _Moment, end: _Moment) -> float:
    if isinstance(begin, torch.cuda.Event):
        return float(begin.elapsed_time(end)) / 1000
    return float(end - begin)


def _values(name: str, results: list[tuple[int, BackwardResult]]) -> Any:
    """What the results call `name`, one row a step, copied at once; None where one has none."""
    found = [getattr(result, name) for _, result in results]
    if any(value is None for value in found):
        return None
    return torch.stack(found).double().cpu() if found else ()


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _mean_of_pairs(cosines: Tensor) -> float | None:
    """Mean over the pairs of domains."""
    if len(cosines) < 2:
        return None
    rows, columns = torch.triu_indices(len(cosines), len(cosines), offset=1, device="cpu")
    return float(cosines[rows, columns].mean())


@dataclass(frozen=True)
class TrainingProgress:
    """One report of a run.

    Args:
        stage: "images" (decoding), "features" (what frozen layers make of them), "resuming" (at the
            step that an interrupted run goes on from), "training" (steps) or "testing" (test
            images).
        done: of `total`, in the stage's unit.
        total: how many there are.
        loss: mean loss of the source domains at this step.
        agreeing: fraction of the components on which the domains agree at this step.
        validation_loss: at this step, where it was validated.
        validation_accuracy: at this step, where it was validated.
        cosine: mean over the pairs of domains at this step.
        learning_rate: of this step.
        data_wait: fraction of the time of the steps so far that passed without images to compute
            on.
        note: a line for whoever watches.
    """

    stage: Literal["images", "features", "resuming", "training", "testing"]
    done: int
    total: int
    loss: float | None = None
    agreeing: float | None = None
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    data_wait: float | None = None
    cosine: float | None = None
    learning_rate: float | None = None
    note: str | None = None


ProgressCallback = Callable[[TrainingProgress], None]
