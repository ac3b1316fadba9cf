"""Invariant risk minimisation, version 1 (Arjovsky et al. 2019)."""

from collections.abc import Sequence
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from typing_extensions import override

from gradsurgery.algorithms.forward import Forward
from gradsurgery.algorithms.objectives.base import AnnealedObjective, Batch, DomainLosses
from gradsurgery.errors import ArgumentError
from gradsurgery.hyperparameters import DOMAINBED, Hyperparameter


class IRM(AnnealedObjective):
    """L_d + w·P_d with the penalty of two halves of the batch,

        P_d = ∂_s CE(s·z[0::2], y[0::2])|_{s=1} · ∂_s CE(s·z[1::2], y[1::2])|_{s=1},

    an unbiased estimate of the squared gradient in s, which can be negative. w = 1 for the first
    `anneal` steps and λ from then on, when the optimiser's state is dropped.

    Source: Arjovsky et al., "Invariant Risk Minimization", 2019, eq. IRMv1 and appendix D;
    the annealing as in DomainBed (Gulrajani & Lopez-Paz 2020).
    """

    name: ClassVar[str] = "irm"
    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (
        Hyperparameter(
            "penalty",
            100.0,
            "weight λ of the invariance penalty after annealing",
            source=DOMAINBED,
        ),
        Hyperparameter("anneal", 500, "steps with weight 1 before that", source=DOMAINBED),
    )

    stage = AnnealedObjective.stage

    @override
    def losses(self, forward: Forward, batches: Sequence[Batch], step: int) -> DomainLosses:
        weight = self.weight(step)
        logits = forward([images for images, _ in batches])
        for _, labels in batches:
            z = next(logits)
            yield cross_entropy(z, labels) + weight * invariance_penalty(z, labels)


def invariance_penalty(
    logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """P_d: the product of the scale's gradients on the even and the odd images of the batch.

    Raises `ArgumentError` for a single image.
    """
    if len(labels) < 2:
        raise ArgumentError(
            "irm compares two halves of every domain's batch, found a batch of 1 image; use a "
            "batch size of at least 2"
        )
    return scale_gradient(logits[0::2], labels[0::2]) * scale_gradient(logits[1::2], labels[1::2])


def scale_gradient(
    logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """∂_s CE(s·z, y)|_{s=1} = mean_n (Σ_k softmax(z_n)_k z_nk − z_n,y_n)."""
    expected = (logits.softmax(1) * logits).sum(1)
    return (expected - logits.gather(1, labels[:, None]).squeeze(1)).mean()
