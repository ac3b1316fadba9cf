"""Gradient surgery: one gradient per domain, combined by a rule."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradsurgery.algorithms.base import Algorithm, Autocast, Batch
from gradsurgery.engine import BackwardResult, backward
from gradsurgery.rules import Rule


class Surgery(Algorithm):
    """rule(∇L_1, …, ∇L_D) with L_d the mean cross-entropy of domain d's batch."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def backward(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        *,
        scaler: torch.amp.GradScaler | None = None,
        autocast: Autocast = nullcontext,
    ) -> BackwardResult:
        """One forward and one backward pass per domain, one graph alive at a time."""

        def losses() -> Iterator[Tensor]:
            for images, labels in batches:
                with autocast():
                    loss = cross_entropy(model(images), labels)
                yield loss

        return backward(losses(), model.named_parameters(), self.rule, scaler=scaler)
