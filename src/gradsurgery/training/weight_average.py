"""What averages a run's weights over its steps, and how two sets of weights are averaged."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from typing_extensions import override

Weights = dict[str, Tensor]


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

    model: nn.Module
    selects: ClassVar[bool] = False

    @abstractmethod
    def update(self, step: int) -> None:
        """Take in the weights after step `step`, counted from 1."""

    @abstractmethod
    def validated(self, step: int, loss: float) -> None:
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

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @override
    def update(self, step: int) -> None:
        pass

    @override
    def validated(self, step: int, loss: float) -> None:
        pass


def blend(averaged: Weights, current: Weights, keep: float) -> None:
    """In place, averaged ← keep·averaged + (1 − keep)·current; counters are copied."""
    floating = [name for name, value in averaged.items() if value.is_floating_point()]
    move = get_ema_multi_avg_fn(keep)
    move([averaged[name] for name in floating], [current[name] for name in floating], 0)
    with torch.no_grad():
        for name in averaged.keys() - set(floating):
            averaged[name].copy_(current[name])
