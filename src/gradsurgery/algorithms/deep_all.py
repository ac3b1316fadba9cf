"""Deep-All: one gradient of the pooled batch."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradsurgery.algorithms.base import Algorithm, Autocast, Batch
from gradsurgery.engine import BackwardResult, backward
from gradsurgery.rules import Mean


class DeepAll(Algorithm):
    """∇ of the mean cross-entropy over the pooled batch, which holds every domain equally.

    The baseline of domain generalization: empirical risk minimisation over all source domains.
    """

    def backward(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        *,
        scaler: torch.amp.GradScaler | None = None,
        autocast: Autocast = nullcontext,
    ) -> BackwardResult:
        """One forward and one backward pass; the domains' losses are read off the same logits."""
        images = torch.cat([images for images, _ in batches])
        labels = torch.cat([labels for _, labels in batches])
        with autocast():
            losses = cross_entropy(model(images), labels, reduction="none")
        result = backward([losses.mean()], model.named_parameters(), Mean(), scaler=scaler)
        return replace(result, losses=_mean_by_domain(losses.detach(), batches))


def _mean_by_domain(
    losses: Float[Tensor, " pooled"], batches: Sequence[Batch]
) -> Float[Tensor, " domains"]:
    sizes = [len(labels) for _, labels in batches]
    return torch.stack([part.mean() for part in losses.split(sizes)])
