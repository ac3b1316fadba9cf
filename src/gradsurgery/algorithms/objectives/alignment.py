"""CORAL and MMD: the risks, and how far apart the distributions of the domains' features are."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from gradsurgery.algorithms.forward import Forward
from gradsurgery.algorithms.objectives.base import Batch, DomainLosses, Objective
from gradsurgery.errors import ArgumentError
from gradsurgery.hyperparameters import DOMAINBED, Hyperparameter

Features = Sequence[Float[Tensor, "_ features"]]
"""What goes into the last linear layer, domain by domain."""

_EXACT = "donot_use_mm_for_euclid_dist"  # ‖a‖² + ‖b‖² − 2ab has lost what small distances are


class Alignment(Objective):
    """L_d + γ · 2D/(D − 1) · ‖φ_d − φ̄‖², φ_d standing for the features of domain d.

    φ̄ is the mean over the domains, detached: its derivative vanishes from the mean of the losses,
    which is that of the risks and γ times the mean of ‖φ_i − φ_j‖² over the pairs of domains.
    """

    minimum_domains = 2
    smooths_labels = True
    reads_features = True
    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (
        Hyperparameter("penalty", 1.0, "weight γ of the distances", source=DOMAINBED),
    )

    @abstractmethod
    def distances(self, features: Features) -> Iterator[Tensor]:
        """‖φ_d − φ̄‖² of each domain in turn."""

    @override
    def stage(self, step: int) -> Any:
        return "alignment"

    @override
    def losses(self, forward: Forward, batches: Sequence[Batch], step: int) -> DomainLosses:
        passes = list(forward.with_head_inputs([images for images, _ in batches]))
        risks = [self.risk(z, labels) for (_, z), (_, labels) in zip(passes, batches, strict=True)]
        forward.values_of(risks)
        weight = self.values["penalty"] * 2 * len(risks) / (len(risks) - 1)
        distances = self.distances([features for features, _ in passes])
        for risk in risks:
            yield risk + weight * next(distances)


class CORAL(Alignment):
    """L_d + γ · 2D/(D − 1) · (‖m_d − m̄‖² + ‖C_d − C̄‖²), ‖·‖² a mean over the components.

    m_d is the mean and C_d the covariance (divisor n − 1) of the features of domain d's batch.

    Source: Sun & Saenko, "Deep CORAL: Correlation Alignment for Deep Domain Adaptation", ECCV
    Workshops 2016, eq. 1, between all pairs of source domains and with the means, as in DomainBed.
    Raises `ArgumentError` for a single image of a domain, which has no covariance.
    """

    name = "coral"

    @override
    def distances(self, features: Features) -> Iterator[Tensor]:
        if min(map(len, features)) < 2:
            raise ArgumentError(
                "coral compares the covariances of the domains' features, found a batch of 1 "
                "image; use a batch size of at least 2"
            )
        moments = [(rows.mean(0), torch.cov(rows.T)) for rows in features]
        centres = [
            torch.stack([m.detach() for m in of]).mean(0) for of in zip(*moments, strict=True)
        ]
        for own in moments:
            apart = [(a - b).square().mean() for a, b in zip(own, centres, strict=True)]
            yield apart[0] + apart[1]


class MMD(Alignment):
    """L_d + γ · 2D/(D − 1) · ‖μ_d − μ̄‖², μ_d the mean embedding of the features by

        k(a, b) = Σ_s exp(−s ‖a − b‖²),  s = 0.001, 0.01, …, 1000:

    ⟨μ_i, μ_j⟩ is the mean of k over the pairs of an image of domain i and one of domain j, and
    ‖μ_i − μ_j‖² the squared maximum mean discrepancy of the two batches.

    Source: Li et al., "Domain Generalization with Adversarial Feature Learning", CVPR 2018, section
    3.2, without its autoencoder and adversary; kernel and weight as in DomainBed.
    """

    name = "mmd"

    @override
    def distances(self, features: Features) -> Iterator[Tensor]:
        fixed = [rows.detach() for rows in features]
        everything = torch.cat(fixed)
        shares = torch.cat([rows.new_full((len(rows),), 1 / len(rows)) for rows in fixed])

        def across(rows: Tensor) -> Tensor:  # ⟨μ_d, μ̄⟩
            return (kernel(rows, everything) @ shares).mean() / len(fixed)

        inner = torch.stack([across(rows) for rows in fixed]).mean()
        for rows in features:
            yield kernel(rows, rows).mean() - 2 * across(rows) + inner


def kernel(
    a: Float[Tensor, "some features"], b: Float[Tensor, "others features"]
) -> Float[Tensor, "some others"]:
    """Σ_s exp(−s ‖a_n − b_m‖²) with s = 10⁻³, …, 10³.

    >>> kernel(torch.zeros(1, 2), torch.zeros(2, 2))
    tensor([[7., 7.]])
    """
    squared = torch.cdist(a, b, compute_mode=_EXACT).square()
    return torch.stack([(-(10.0**power) * squared).exp() for power in range(-3, 4)]).sum(0)
