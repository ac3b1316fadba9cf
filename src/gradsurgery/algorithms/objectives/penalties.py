"""The risks and a penalty: IRM, V-REx and Fishr on what differs between domains, SD on logits."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from typing_extensions import override

from gradsurgery.algorithms.forward import OUT_OF_REACH, Forward, smoothed
from gradsurgery.algorithms.objectives.base import Batch, DomainLosses, Objective
from gradsurgery.errors import ArgumentError
from gradsurgery.hyperparameters import DOMAINBED, Hyperparameter


def annealed(penalty: float, of: str, steps: int, *, first: int) -> tuple[Hyperparameter, ...]:
    """The weight of the penalty, and for how many steps it is `first` before."""
    return (
        Hyperparameter("penalty", penalty, f"weight {of} after annealing", source=DOMAINBED),
        Hyperparameter("anneal", steps, f"steps with weight {first} before that", source=DOMAINBED),
    )


class AnnealedObjective(Objective):
    """An objective whose penalty has another weight for the first `anneal` steps, by default 1.

    With the full weight the loss is of another scale, so the optimiser's state is dropped, as
    DomainBed does.
    """

    first_weight: ClassVar[float] = 1.0

    def weight(self, step: int) -> float:
        """The penalty's weight at `step`."""
        full: float = self.values["penalty"]
        return full if step > self.values["anneal"] else self.first_weight

    @override
    def stage(self, step: int) -> Any:
        return self.weight(step), self.restarts_optimizer(step)

    @override
    def restarts_optimizer(self, step: int) -> bool:
        return bool(step == self.values["anneal"] + 1 and step > 1)

    @override
    def idle_reason(self, steps: int) -> str | None:
        anneal = self.values["anneal"]
        if self.first_weight != 0 or anneal < steps:
            return None
        return (
            f"{self.name} does what erm does for the first {anneal} steps, and the run has {steps} "
            f"iterations; give it more, or --set {self.name}.anneal={steps // 3}"
        )


class IRM(AnnealedObjective):
    """L_d + w·P_d with the penalty of two halves of the batch,

        P_d = ∂_s CE(s·z[0::2], y[0::2])|_{s=1} · ∂_s CE(s·z[1::2], y[1::2])|_{s=1},

    an unbiased estimate of the squared gradient in s, which can be negative. w = 1 for the first
    `anneal` steps and λ from then on, when the optimiser's state is dropped.

    Source: Arjovsky et al., "Invariant Risk Minimization", 2019, eq. IRMv1 and appendix D;
    the annealing as in DomainBed (Gulrajani & Lopez-Paz 2020).
    """

    name = "irm"
    smooths_labels = True
    hyperparameters = annealed(100.0, "λ of the invariance penalty", 500, first=1)

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


class VREx(AnnealedObjective):
    """mean_d L_d + w·mean_d (L_d − L̄)², the mean and the variance of the domains' risks.

    Loss number d is L_d + w (L_d − L̄)². L̄ is detached: its derivative vanishes from the mean,
    since Σ_d (L_d − L̄) = 0. w = 1 for the first `anneal` steps and `penalty` from then on, when
    the optimiser's state is dropped.

    Source: Krueger et al., "Out-of-Distribution Generalization via Risk Extrapolation (REx)",
    ICML 2021, eq. 8; the annealing as in DomainBed.
    """

    name = "vrex"
    smooths_labels = True
    weighs_classes = True
    hyperparameters = annealed(10.0, "of the risks' variance", 500, first=1)

    stage = AnnealedObjective.stage

    @override
    def losses(self, forward: Forward, batches: Sequence[Batch], step: int) -> DomainLosses:
        weight = self.weight(step)
        risks = self.risks(forward, batches)
        mean = forward.values_of(risks).mean()
        while risks:
            risk = risks.pop(0)
            yield risk + weight * (risk - mean) ** 2


class Fishr(AnnealedObjective):
    """mean_d L_d + w·mean_d ‖v_d − v̄‖², where v_d is the variance over domain d's images of the
    gradient in the last linear layer's weights and biases, and ‖·‖² a mean over components.

    v_d is an exponential moving average, v_d = (γ v_d(before) + (1 − γ) var_d) / (1 − γ), the
    average before detached and its factor such that the gradient does not depend on γ. Loss number
    d is L_d + w‖v_d − v̄‖² with v̄ detached: its derivative vanishes from the mean. w = 0 for the
    first `anneal` steps and λ from then on, when the optimiser's state is dropped.

    Source: Rame et al., "Fishr: Invariant Gradient Variances for Out-of-Distribution
    Generalization", ICML 2022, eq. 4 and algorithm 1; hyperparameters as in DomainBed.
    """

    name = "fishr"
    smooths_labels = True
    reads_features = True
    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (
        *annealed(1000.0, "λ of the variances' distance", 1500, first=0),
        Hyperparameter(
            "ema", 0.95, "decay γ of the variances' moving average", high=0.9999, source=DOMAINBED
        ),
    )
    state_names = ("averages",)
    first_weight = 0.0

    stage = AnnealedObjective.stage

    @override
    def losses(self, forward: Forward, batches: Sequence[Batch], step: int) -> DomainLosses:
        weight = self.weight(step)
        bias = _plain_head(forward).bias is not None
        passes = forward.with_head_inputs([images for images, _ in batches])
        parts = [
            (
                self.risk(z, labels),
                head_gradient_variance(features, z, labels, self.label_smoothing, bias=bias),
            )
            for (features, z), (_, labels) in zip(passes, batches, strict=True)
        ]
        forward.values_of([risk for risk, _ in parts])
        decay = self.values["ema"]
        drawn = torch.stack([variance.detach() for _, variance in parts])
        before = self.remembered("averages", torch.zeros_like(drawn))
        self.state["averages"] = averages = decay * before + (1 - decay) * drawn
        mean = averages.mean(0) / (1 - decay)
        for domain in range(len(parts)):
            risk, variance = parts[domain]
            average = decay / (1 - decay) * before[domain] + variance
            yield risk + weight * (average - mean).square().mean()


def _plain_head(forward: Forward) -> nn.Linear:
    """The last linear layer, whose logits are the weights times the features."""
    head = forward.head
    if type(head).forward is not nn.Linear.forward:
        raise ArgumentError(
            f"fishr knows the images' gradients in a linear layer, and the last layer of "
            f"{type(forward.model).__name__} is a {type(head).__name__}, which computes its logits "
            "in a way of its own; choose another backbone or method"
        )
    return head


def head_gradient_variance(
    features: Float[Tensor, "batch features"],
    logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    label_smoothing: float = 0.0,
    *,
    bias: bool = True,
) -> Float[Tensor, " weights"]:
    """Variance over the batch of ∇CE in the last layer's weights and biases, flat.

    Image n's gradient is δ_n a_nᵀ with δ_n = softmax(z_n) − q_n, q_n being the one-hot or smoothed
    target, and a_n its features (and 1 for the bias, if there is one), so the variance is
    mean_n δ_n² a_n²ᵀ − (mean_n δ_n a_nᵀ)².
    """
    delta = logits.softmax(1) - smoothed(labels, logits, label_smoothing)
    ones = [torch.ones_like(features[:, :1])] if bias else []
    inputs = torch.cat([features, *ones], 1)
    mean = delta.T @ inputs / len(inputs)
    return (delta.square().T @ inputs.square() / len(inputs) - mean.square()).flatten()


class SD(Objective):
    """Spectral decoupling: L_d + λ·mean(z²), the mean over the images and classes of domain d.

    Small logits keep the features that are learned first from starving the others. A class whose
    images the domain lacks is not in the mean.

    Source: Pezeshki et al., "Gradient Starvation: A Learning Proclivity in Neural Networks",
    NeurIPS 2021 (arXiv 2011.09468), eq. 25, with DomainBed's mean for the squared norm.
    """

    name = "sd"
    smooths_labels = True
    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (
        Hyperparameter("penalty", 0.1, "weight λ of the squared logits", source=DOMAINBED),
    )

    @override
    def stage(self, step: int) -> Any:
        return "sd"

    @override
    def losses(self, forward: Forward, batches: Sequence[Batch], step: int) -> DomainLosses:
        logits = forward([images for images, _ in batches])
        for _, labels in batches:
            z = next(logits)
            yield self.risk(z, labels) + self.values["penalty"] * mean_square(z)


def mean_square(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """The mean of the squared logits that are within reach.

    >>> mean_square(torch.tensor([[1.0, OUT_OF_REACH], [3.0, OUT_OF_REACH]]))
    tensor(5.)
    """
    within = logits != OUT_OF_REACH
    return logits.where(within, 0).square().sum() / within.sum()
