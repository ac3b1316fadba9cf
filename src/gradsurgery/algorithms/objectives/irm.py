"""Invariant risk minimisation, version 1 (Arjovsky et al. 2019)."""

from collections.abc import Sequence
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from gradsurgery.algorithms.forward import Forward, smoothed
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
    smooths_labels: ClassVar[bool] = True
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
            risk = self.risk(z, labels)
            yield risk + weight * invariance_penalty(z, labels, self.label_smoothing)


def invariance_penalty(
    logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """P_d: the product of the scale's gradients on the even and the odd images of the batch.

    Raises `ArgumentError` for a single image.
    """
    if len(labels) < 2:
        raise ArgumentError(
            "irm compares two halves of every domain's batch, found a batch of 1 image; use a "
            "batch size of at least 2"
        )
    even, odd = (
        scale_gradient(logits[start::2], labels[start::2], label_smoothing) for start in (0, 1)
    )
    return even * odd


def scale_gradient(
    logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """∂_s CE(s·z, y)|_{s=1} = mean_n (Σ_k softmax(z_n)_k z_nk − z_n,y_n).

    With label smoothing Σ_k q_nk z_nk takes the place of z_n,y_n.
    """
    expected = (logits.softmax(1) * logits).sum(1)
    if label_smoothing == 0:
        target = logits.gather(1, labels[:, None]).squeeze(1)
    else:
        target = (smoothed(labels, logits, label_smoothing) * logits).sum(1)
    return (expected - target).mean()
