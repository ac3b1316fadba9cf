"""The risks, and how far apart the domains' features are (CORAL, MMD) or how spread (IB)."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from gradsurgery.algorithms.forward import Forward
from gradsurgery.algorithms.objectives.base import Batch, DomainLosses, Objective
from gradsurgery.algorithms.objectives.penalties import (
    AnnealedObjective,
    annealed,
    invariance_penalty,
)
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
    shapes_features = True
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
        moments = [mean_and_covariance(rows) for rows in features]
        centres = [
            torch.stack([m.detach() for m in of]).mean(0) for of in zip(*moments, strict=True)
        ]
        for own in moments:
            apart = [(a - b).square().mean() for a, b in zip(own, centres, strict=True)]
            yield apart[0] + apart[1]


def mean_and_covariance(
    rows: Float[Tensor, "batch features"],
) -> tuple[Float[Tensor, " features"], Float[Tensor, "features features"]]:
    """The mean and the covariance, divisor n − 1; `torch.cov` would wait for an accelerator.

    >>> mean_and_covariance(torch.tensor([[1.0, 0.0], [3.0, 4.0]]))[1]
    tensor([[2., 4.],
            [4., 8.]])
    """
    mean = rows.mean(0)
    apart = rows - mean
    return mean, apart.T @ apart / (len(rows) - 1)


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


class IBERM(AnnealedObjective):
    """L_d + w·v_d, where v_d is the mean over the features of their variance in domain d's batch.

    The variance has the divisor n − 1. w = 0 for the first `anneal` steps and λ from then on, when
    the optimiser's state is dropped.

    Source: Ahuja et al., "Invariance Principle Meets Information Bottleneck for Out-of-Distribution
    Generalization", NeurIPS 2021, section 4; the annealing as in DomainBed. Raises `ArgumentError`
    for a single image of a domain, which has no variance.
    """

    name = "ib-erm"
    smooths_labels = True
    reads_features = True
    shapes_features = True
    hyperparameters = annealed(100.0, "λ of the features' variance", 500, first=0)
    first_weight = 0.0

    stage = AnnealedObjective.stage

    @override
    def losses(self, forward: Forward, batches: Sequence[Batch], step: int) -> DomainLosses:
        weight = self.weight(step)
        passes = forward.with_head_inputs([images for images, _ in batches])
        for _, labels in batches:
            features, z = next(passes)
            yield self.risk(z, labels) + weight * feature_variance(features, self.name)


class IBIRM(AnnealedObjective):
    """L_d + w·P_d + u·v_d with the penalty P_d of `IRM` and the variance v_d of `IBERM`.

    w and u are theirs, each with steps of annealing of its own; at the end of either the
    optimiser's state is dropped.

    Source: Ahuja et al. 2021, as of `IBERM`; the annealing as in DomainBed.
    """

    name = "ib-irm"
    smooths_labels = True
    reads_features = True
    shapes_features = True
    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (
        *annealed(100.0, "λ of the invariance penalty", 500, first=1),
        Hyperparameter(
            "ib_penalty", 100.0, "weight of the features' variance after its own", source=DOMAINBED
        ),
        Hyperparameter("ib_anneal", 500, "steps with weight 0 before that", source=DOMAINBED),
    )

    def ib_weight(self, step: int) -> float:
        """The variance's weight at `step`."""
        full: float = self.values["ib_penalty"]
        return full if step > self.values["ib_anneal"] else 0.0

    @override
    def stage(self, step: int) -> Any:
        return self.weight(step), self.ib_weight(step), self.restarts_optimizer(step)

    @override
    def restarts_optimizer(self, step: int) -> bool:
        return step > 1 and step - 1 in (self.values["anneal"], self.values["ib_anneal"])

    @override
    def idle_reason(self, steps: int) -> str | None:
        anneal = self.values["ib_anneal"]
        if anneal < steps:
            return None
        return (
            f"ib-irm does what irm does for the first {anneal} steps, and the run has {steps} "
            f"iterations; give it more, or --set ib-irm.ib_anneal={steps // 3}"
        )

    @override
    def losses(self, forward: Forward, batches: Sequence[Batch], step: int) -> DomainLosses:
        weight, ib_weight = self.weight(step), self.ib_weight(step)
        passes = forward.with_head_inputs([images for images, _ in batches])
        for _, labels in batches:
            features, z = next(passes)
            penalised = self.risk(z, labels) + ib_weight * feature_variance(features, self.name)
            yield penalised + weight * invariance_penalty(z, labels, self.label_smoothing)


def feature_variance(features: Float[Tensor, "batch features"], of: str) -> Float[Tensor, ""]:
    """The mean over the features of their variance over the batch.

    Raises `ArgumentError` for a single image.
    """
    if len(features) < 2:
        raise ArgumentError(
            f"{of} takes the variance of every domain's features, found a batch of 1 image; use a "
            "batch size of at least 2"
        )
    return features.var(0).mean()
