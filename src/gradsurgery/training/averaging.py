"""What becomes of a run's weights over its steps: nothing, an exponential average, or SWAD."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from typing_extensions import override

from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.errors import ArgumentError
from gradsurgery.hyperparameters import Hyperparameter, Setting, checked_values

Weights = dict[str, Tensor]
_PAPER = "Cha et al. 2021"


@dataclass(frozen=True)
class AveragedWeights:
    """The mean of the weights after the steps `first` to `last`, both among them."""

    first: int
    last: int
    weights: Weights


class WeightAverage(ABC):
    """What becomes of a model's weights over the steps of a run.

    model: the one that is validated and tested.
    selects: whether the best model is `result`, rather than that of the highest validation
        accuracy.
    """

    selects: ClassVar[bool] = False
    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = ()

    def __init__(self, model: nn.Module, **values: Any) -> None:
        self.model = model

    @abstractmethod
    def update(self, step: int) -> None:
        """Take in the weights after step `step`, counted from 1."""

    def validated(self, step: int, loss: float) -> None:  # noqa: B027
        """Hear of the loss of `model` on the validation images after step `step`."""

    def result(self) -> AveragedWeights | None:
        """The best model of an average that `selects`, once the last step is validated."""
        return None

    def state(self) -> dict[str, Any]:
        """What a resumed run needs beside the model."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        if state:
            raise ValueError(f"{type(self).__name__} has no state, found {sorted(state)}")


@final
class NoAverage(WeightAverage):
    """The weights as they are."""

    @override
    def update(self, step: int) -> None:
        pass


def blend(averaged: Weights, current: Weights, keep: float) -> None:
    """In place, averaged ← keep·averaged + (1 − keep)·current; counters are copied."""
    floating = [name for name, value in averaged.items() if value.is_floating_point()]
    move = get_ema_multi_avg_fn(keep)
    move([averaged[name] for name in floating], [current[name] for name in floating], 0)
    if counters := averaged.keys() - set(floating):
        torch._foreach_copy_([averaged[name] for name in counters], [current[n] for n in counters])


@final
class ExponentialAverage(WeightAverage):
    """θ̄_t = decay·θ̄_{t−1} + (1 − decay)·θ_t, from θ̄_1 = θ_1, in memory of one more model.

    The averaged model is the one that is validated, selected and tested, so that the best and the
    last model of the run are averages. Running statistics of batch normalisation are averaged as
    the weights are; counters are copied. The weights weigh in for about 1 / (1 − decay) steps:
    100 by default, a tenth of the paper's run. With torch's 0.999 the very first weights would
    still make up 37 % of the average at the end of it.

    Source: `torch.optim.swa_utils.get_ema_multi_avg_fn`, whose formula this is.
    """

    hyperparameters = (
        Hyperparameter(
            "decay", 0.99, "share of the average that a step keeps", high=0.99999, source="PyTorch"
        ),
    )

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        super().__init__(deepcopy(model).requires_grad_(False))
        self._trained = model
        self._decay = decay

    def update(self, step: int) -> None:
        """Move towards the weights; the first are taken as they are."""
        keep = self._decay if step > 1 else 0.0
        blend(self.model.state_dict(), self._trained.state_dict(), keep)

    @override
    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict()}

    @override
    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])


class Valley(NamedTuple):
    """Where the validation loss is low, as positions in the list of losses.

    start: where the average starts; None as long as the loss has not converged.
    settled: up to where it goes at least, whatever losses follow.
    ended: whether it goes no further.
    """

    start: int | None
    settled: int
    ended: bool


def find_valley(
    losses: Sequence[float], *, optimum_patience: int, overfit_patience: int, tolerance_rate: float
) -> Valley:
    """The valley in the losses of validations 0 to i, with N_s, N_e and r as in algorithm 1.

    It starts at the first loss that none of the N_s − 1 after it falls below. With the limit
    l = r · (mean of these N_s losses), it ends before the first N_e losses in a row that are all
    above l, of which the last comes after those N_s. A loss that is not finite is above any limit,
    and nothing has converged as long as it is among the last N_s.

    Source: Cha et al., "SWAD: Domain Generalization by Seeking Flat Minima", NeurIPS 2021,
    algorithm 1.

    >>> losses = [9.0, 1.0, 2.0, 2.0, 1.0, 5.0, 5.0]
    >>> find_valley(losses, optimum_patience=3, overfit_patience=2, tolerance_rate=1.3)
    Valley(start=1, settled=4, ended=True)
    """
    losses = [loss if math.isfinite(loss) else math.inf for loss in losses]
    for start in range(len(losses) - optimum_patience + 1):
        window = losses[start : start + optimum_patience]
        if max(window) < math.inf and window[0] == min(window):
            break
    else:
        return Valley(None, -1, ended=False)
    limit = tolerance_rate * fmean(window)
    for last in range(start + optimum_patience, len(losses)):
        first = last - overfit_patience + 1
        if first > start and min(losses[first : last + 1]) > limit:
            return Valley(start, first - 1, ended=True)
    low = max(i for i, loss in enumerate(losses) if i == start or loss <= limit)
    # Even if all that follow are above the limit, the last N_e have to be.
    return Valley(start, max(low, len(losses) - overfit_patience), ended=False)


@final
class Swad(WeightAverage):
    """The mean of the weights after every step of the valley of the validation loss.

    The plain model is validated, and its losses say where the valley is (`find_valley`). What is
    averaged are whole stretches between validations, as in the authors' code: it begins after the
    validation before the valley's first one, and goes to its last one. Training goes on after the
    valley has ended, for the last model's sake. Running statistics of batch normalisation are
    averaged as the weights are.

    This is algorithm 1. The authors' code departs from it in three ways:

    - Where the loss never converges it takes the last stretch alone; here that is every step: a run
      that ends while its loss still falls is too short for SWAD.
    - Where N_e > N_s, as by default, it also takes in stretches from before the start, back to the
      last loss above the limit and at most N_e − N_s of them, and counts some stretches near the
      start more than once; here nothing before the start counts, and every stretch once.
    - Where the run ends before the valley does, it leaves out the stretches after the last loss
      that is not above the limit; here they count, because no N_e losses in a row were above it.

    Memory: at most N_s + 1 models beside the one that is trained (4 by default), 3 after the loss
    has converged: stretches that only count together are kept as one mean.
    """

    selects = True
    hyperparameters = (
        Hyperparameter(
            "optimum_patience", 3, "N_s: validations without a lower loss", low=1.0, source=_PAPER
        ),
        Hyperparameter(
            "overfit_patience", 6, "N_e: validations in a row above r", low=1.0, source=_PAPER
        ),
        Hyperparameter(
            "tolerance_rate", 1.3, "r: times the loss at the start", low=1.0, source=_PAPER
        ),
    )

    def __init__(self, model: nn.Module, **values: Any) -> None:
        super().__init__(model)
        self._values = values
        self._steps: list[int] = []
        self._losses: list[float] = []
        self._valley = Valley(None, -1, ended=False)
        self._means: list[AveragedWeights] = []
        """Of stretches of steps that follow one another without a gap."""

    def update(self, step: int) -> None:
        """Add the weights to the mean of their stretch, unless the valley has ended."""
        if self._valley.ended:
            return
        current = self.model.state_dict()
        validated = self._steps[-1] if self._steps else 0
        if step == validated + 1:  # the stretch begins
            weights = {name: value.detach().clone() for name, value in current.items()}
            self._means.append(AveragedWeights(step, step, weights))
        else:
            single = AveragedWeights(step, step, current)
            self._means.append(_joined(self._means.pop(), single))

    def validated(self, step: int, loss: float) -> None:
        """Find the valley anew, and forget or join the stretches that it leaves no choice about."""
        if self._valley.ended:
            return
        self._steps.append(step)
        self._losses.append(loss)
        self._valley = find_valley(self._losses, **self._values)
        start, settled, ended = self._valley
        if start is None:
            ends = self._steps[-self._values["optimum_patience"] :]
        else:
            before = self._steps[start - 1] if start else 0
            last = self._steps[settled] if ended else step
            self._means = [m for m in self._means if before < m.first and m.last <= last]
            ends = [self._steps[settled]]
        self._join(ends)

    def result(self) -> AveragedWeights | None:
        """The average over the valley; to the last step where it has not ended."""
        self._join([])
        return self._means[0]

    def state(self) -> dict[str, Any]:
        """The losses, and the means of the stretches."""
        return {
            "steps": self._steps,
            "losses": self._losses,
            "means": [(mean.first, mean.last, mean.weights) for mean in self._means],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state; the means go to the model's device."""
        devices = {name: value.device for name, value in self.model.state_dict().items()}
        self._steps, self._losses = list(state["steps"]), list(state["losses"])
        self._valley = find_valley(self._losses, **self._values)
        self._means = [
            AveragedWeights(first, last, {n: v.to(devices[n]) for n, v in weights.items()})
            for first, last, weights in state["means"]
        ]

    def _join(self, ends: list[int]) -> None:
        """Join stretches that follow one another, except where the former ends at one of `ends`."""
        joined: list[AveragedWeights] = []
        for mean in self._means:
            if joined and joined[-1].last not in ends:
                joined.append(_joined(joined.pop(), mean))
            else:
                joined.append(mean)
        self._means = joined


def _joined(former: AveragedWeights, latter: AveragedWeights) -> AveragedWeights:
    """The mean over both; the former's tensors are overwritten."""
    earlier = former.last - former.first + 1
    later = latter.last - latter.first + 1
    blend(former.weights, latter.weights, keep=earlier / (earlier + later))
    return AveragedWeights(former.first, latter.last, former.weights)


AVERAGES: dict[str, type[WeightAverage]] = {
    "none": NoAverage,
    "ema": ExponentialAverage,
    "swad": Swad,
}
"""The averages by name."""


def build_average(configuration: RunConfiguration, model: nn.Module) -> WeightAverage:
    """The run's average of `model`, which is on its device already."""
    return AVERAGES[configuration.average](model, **average_values(configuration))


def average_values(configuration: RunConfiguration) -> dict[str, Any]:
    """The hyperparameters of the run's average: those in `settings`, the others by default.

    Raises `ArgumentError` for one out of its range, unknown, or of another average.
    """
    given, chosen = {}, configuration.average
    for key, value in average_settings(configuration.settings).items():
        owner, _, name = key.rpartition(".")
        if owner != chosen:
            raise ArgumentError(
                f"{key} is set and the average is {chosen!r}; choose average {owner!r}, "
                f"or leave {key} out"
            )
        given[name] = value
    return checked_values(chosen, AVERAGES[chosen].hyperparameters, given)


def average_settings(settings: Mapping[str, float | str]) -> dict[str, float | str]:
    """The settings that are about an average; the others are the method's."""
    return {key: value for key, value in settings.items() if key.rpartition(".")[0] in AVERAGES}


def method_settings(settings: Mapping[str, float | str]) -> dict[str, float | str]:
    """The settings that are about the method."""
    return {k: value for k, value in settings.items() if k.rpartition(".")[0] not in AVERAGES}


def average_listing() -> list[Setting]:
    """Every hyperparameter of every average, as `settings` takes it."""
    return [h.listed(owner) for owner, kind in AVERAGES.items() for h in kind.hyperparameters]
