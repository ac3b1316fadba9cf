"""What one training step is: the domains' batches in, an optimiser step out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from gradsurgery.algorithms.objectives import Batch
from gradsurgery.engine import BackwardResult
from gradsurgery.errors import ArgumentError, NonFiniteError

Autocast = Callable[[], AbstractContextManager[Any]]


class Algorithm(ABC):
    """One step of a method; the optimiser is the run's.

    minimum_domains: the least number of source domains that it makes sense with.
    """

    minimum_domains: int = 1

    @abstractmethod
    def step(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        optimizer: torch.optim.Optimizer,
        *,
        step: int,
        scaler: torch.amp.GradScaler | None = None,
        autocast: Autocast = nullcontext,
    ) -> BackwardResult:
        """Take step `step`, counted from 1, with one batch per source domain.

        `autocast` is entered around each forward pass. Returns the domains' losses and what their
        gradients looked like.
        """

    def restarts_optimizer(self, step: int) -> bool:
        """Whether the optimiser's state is dropped before step `step`."""
        return False

    def idle_steps(self) -> int:
        """For how many steps, from the first, the method does what deep-all does."""
        return 0

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs beside the model and the optimiser."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a state of `state_dict`; raises `ArgumentError` on any other keys."""
        if state:
            raise ArgumentError(
                f"{type(self).__name__} keeps no state, found {', '.join(sorted(state))}; load the "
                "state of the same method"
            )


def non_finite(error: NonFiniteError, where: str, domain: int | None) -> NonFiniteError:
    """The error of a backward pass that knew no more than one loss, with whose loss it was."""
    what = "loss" if error.parameter is None else "gradient"
    at = "" if error.parameter is None else f" at parameter {error.parameter}"
    return NonFiniteError(
        f"the {what} of {where}{at} is NaN or infinite; lower the learning rate, use a wider "
        "precision or look at the images",
        domain=domain,
        parameter=error.parameter,
    )
