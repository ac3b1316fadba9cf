"""What a training step computes: losses of the domains' batches in, gradients in .grad out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gradsurgery.engine import BackwardResult

Batch = tuple[Float[Tensor, "batch channels height width"], Int[Tensor, " batch"]]
Autocast = Callable[[], AbstractContextManager[Any]]


class Algorithm(ABC):
    """Computes the gradients of one step; the optimiser is stepped elsewhere."""

    @abstractmethod
    def backward(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        *,
        scaler: torch.amp.GradScaler | None = None,
        autocast: Autocast = nullcontext,
    ) -> BackwardResult:
        """Set every parameter's `.grad` from one batch per source domain.

        `autocast` is entered around each forward pass. The losses of the result are those of the
        domains, whatever the algorithm minimises.
        """
