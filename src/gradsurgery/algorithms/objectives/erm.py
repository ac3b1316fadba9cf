"""Empirical risk minimisation."""

from collections.abc import Sequence
from typing import ClassVar

from torch.nn.functional import cross_entropy

from gradsurgery.algorithms.objectives.base import Batch, DomainLosses, Forward, Objective


class ERM(Objective):
    """L_d = mean cross-entropy of domain d's batch; their mean is the risk of the pooled batch."""

    name: ClassVar[str] = "erm"

    def losses(self, forward: Forward, batches: Sequence[Batch], step: int) -> DomainLosses:
        """The domains' cross-entropies."""
        logits = forward([images for images, _ in batches])
        for _, labels in batches:
            yield cross_entropy(next(logits), labels)
