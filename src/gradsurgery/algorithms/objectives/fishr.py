"""Fishr: matching the variances of the domains' gradients (Rame et al. 2022)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from gradsurgery.algorithms.forward import Forward, smoothed
from gradsurgery.algorithms.objectives.base import AnnealedObjective, Batch, DomainLosses
from gradsurgery.hyperparameters import DOMAINBED, Hyperparameter


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

    name: ClassVar[str] = "fishr"
    smooths_labels: ClassVar[bool] = True
    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (
        Hyperparameter(
            "penalty",
            1000.0,
            "weight λ of the variances' distance after annealing",
            source=DOMAINBED,
        ),
        Hyperparameter("anneal", 1500, "steps with weight 0 before that", source=DOMAINBED),
        Hyperparameter(
            "ema", 0.95, "decay γ of the variances' moving average", high=0.9999, source=DOMAINBED
        ),
    )
    state_names: ClassVar[tuple[str, ...]] = ("averages",)
    first_weight: ClassVar[float] = 0.0

    stage = AnnealedObjective.stage

    @override
    def losses(self, forward: Forward, batches: Sequence[Batch], step: int) -> DomainLosses:
        weight = self.weight(step)
        passes = forward.with_head_inputs([images for images, _ in batches])
        parts = [
            (
                self.risk(z, labels),
                head_gradient_variance(features, z, labels, self.label_smoothing),
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


def head_gradient_variance(
    features: Float[Tensor, "batch features"],
    logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    label_smoothing: float = 0.0,
) -> Float[Tensor, " weights"]:
    """Variance over the batch of ∇CE in the last layer's weights and biases, flat.

    Image n's gradient is δ_n a_nᵀ with δ_n = softmax(z_n) − q_n, q_n being the one-hot or smoothed
    target, and a_n its features (and 1 for the bias), so the variance is
    mean_n δ_n² a_n²ᵀ − (mean_n δ_n a_nᵀ)².
    """
    delta = logits.softmax(1) - smoothed(labels, logits, label_smoothing)
    inputs = torch.cat([features, torch.ones_like(features[:, :1])], 1)
    mean = delta.T @ inputs / len(inputs)
    return (delta.square().T @ inputs.square() / len(inputs) - mean.square()).flatten()
