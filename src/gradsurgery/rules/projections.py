"""PCGrad and Gradient Vaccine: turn each gradient away from its conflicts with the others."""

from collections.abc import Iterable, Mapping
from math import sqrt
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from gradsurgery.errors import ArgumentError
from gradsurgery.hyperparameters import Hyperparameter
from gradsurgery.kernels.flat import projections
from gradsurgery.kernels.network import accelerates, kernels_for, sent
from gradsurgery.rules.gramian import GramianRule

# A gradient this much smaller (squared) than it was before projections is rounding error.
_VANISHED = 1e-14
# No finite multiple of g_j gives a cosine of 1 with it.
_LARGEST_TARGET = 1 - 1e-6


class PCGrad(GramianRule):
    """g* = Σ_d v_d, where v_d is g_d with its conflicts with the other domains projected away.

    For each domain d: v = g_d; for every other domain j in a random order drawn anew for this d:
    if v·g_j < 0 then v ← v − (v·g_j / ‖g_j‖²) g_j, with the original gradients g_j. Every v_d is a
    combination of the g_j, v_d = Σ_j c_dj g_j, and v_d·g_j = Σ_i c_di G_ij, so the Gramian G is all
    that is needed.

    `generator` draws the orders; without one the rule has its own, seeded with 0.

    Source: Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, algorithm 1;
    Mansilla et al. 2021, eq. 5.

    >>> PCGrad()(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
    tensor([0.5000, 1.5000])
    """

    name = "pcgrad"

    def weights(self, gramian: Float[Tensor, "domains domains"]) -> Float[Tensor, " domains"]:
        """w_j = Σ_d c_dj."""
        others = [other for _, other in self.random.pairs(len(gramian))]  # algorithm 1, line 4
        orders = torch.tensor(others, dtype=torch.int64, device=gramian.device)
        return projections(gramian, orders.view(len(gramian), -1)).sum(0)

    @override
    def weights_on_device(
        self, gramian: Float[Tensor, "domains domains"]
    ) -> Float[Tensor, " domains"]:
        if (kernels := kernels_for([gramian])) is None:
            return self.weights(gramian)
        orders = self.random.orders_on(len(gramian), gramian.device)
        return kernels.projections(gramian, orders).sum(0)


class GradVac(GramianRule):
    """g* = Σ_d v_d, where v_d is g_d pulled towards the gradients it is less similar to than usual.

    For each domain d: v = g_d; for every other domain j in a random order drawn anew for this d,
    with φ = cos(v, g_j) and φ̂ the target of the pair (d, j): if φ < φ̂ then

        v ← v + ‖v‖ (φ̂ √(1 − φ²) − φ √(1 − φ̂²)) / (‖g_j‖ √(1 − φ̂²)) g_j,

    which makes the cosine φ̂; then φ̂ ← (1 − β) φ̂ + β φ. Targets start at 0 and belong to the pair.

    beta: the decay β of the average in [0, 1]. Default 0.01, the paper's.
    target: a fixed φ̂ in (−1, 1) for all pairs instead of the average; 0 is PCGrad.
    generator: draws the orders; without one the rule has its own, seeded with 0.

    The targets are state: `state_dict()` and `load_state_dict()` save and restore them. A gradient
    that is zero has no cosine and is left out. The whole network is one block, of the paper's
    choices the simplest.

    Source: Wang et al., "Gradient Vaccine: Investigating and Improving Multi-task Optimization in
    Massively Multilingual Models", ICLR 2021, equations 2 and 3, algorithm 1.

    >>> gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    >>> GradVac()(gradients)  # targets are 0 at first
    tensor([0.5000, 1.5000])
    """

    name = "gradvac"

    _targets: Tensor | None = None

    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (
        Hyperparameter(
            "beta", 0.01, "decay β of the targets' averages", high=1.0, source="Wang et al. 2021"
        ),
        Hyperparameter(
            "target",
            None,
            "one fixed target φ̂ instead; 0 is PCGrad",
            low=-1.0,
            high=1.0,
            open_low=True,
            open_high=True,
        ),
    )

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._decay = self.values["beta"] if self.values["target"] is None else 0.0

    def state_dict(self) -> dict[str, Tensor]:
        """The targets φ̂ per pair, once there are some."""
        return {} if self._targets is None else {"targets": self._targets.cpu().clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the targets; an empty state sets them back to 0."""
        if unexpected := sorted(set(state) - {"targets"}):
            raise ArgumentError(
                f"the state of {self.name} has the key 'targets', found {unexpected[0]!r}"
            )
        if state and self.values["target"] is not None:
            raise ArgumentError(
                f"{self.name} with a fixed target has no state, found 'targets'; build it without "
                "the option target"
            )
        self._targets = state["targets"].double().cpu().clone() if state else None

    def weights(self, gramian: Float[Tensor, "domains domains"]) -> Float[Tensor, " domains"]:
        """w_j = Σ_d c_dj with v_d = Σ_j c_dj g_j; advances the targets."""
        return self._weights(gramian, self.random.pairs(len(gramian)))

    def _weights(
        self, gramian: Float[Tensor, "domains domains"], pairs: Iterable[tuple[int, int]]
    ) -> Float[Tensor, " domains"]:
        products, targets = gramian.numpy(), self._targets_for(gramian).numpy()  # written to
        coefficients, beta = np.eye(len(products)), self._decay
        for domain, other in pairs:
            row = coefficients[domain]
            squared, length = row @ products @ row, sqrt(products[other, other])
            if length == 0 or squared <= _VANISHED * products[domain, domain]:
                continue
            cosine = row @ products[:, other] / (sqrt(squared) * length)
            cosine = min(max(cosine, -1.0), 1.0)
            target = targets[domain, other]
            row[other] += sqrt(squared) / length * step(cosine, target)
            targets[domain, other] = (1 - beta) * target + beta * cosine
        return torch.from_numpy(coefficients.sum(0))

    @override
    def weights_on_device(
        self, gramian: Float[Tensor, "domains domains"]
    ) -> Float[Tensor, " domains"]:
        if kernels_for([gramian]) is None:
            return self.weights(gramian)
        orders = self.random.orders_on(len(gramian), gramian.device)
        if not accelerates([gramian]):  # the device is waited for once, for both
            known = torch.cat([gramian, orders.to(gramian.dtype)], 1).cpu()
            on_cpu, others = known[:, : len(gramian)].double(), known[:, len(gramian) :].long()
            if not on_cpu.isfinite().all():
                return gramian[0]
            pairs = [(domain, other) for domain, row in enumerate(others.tolist()) for other in row]
            return sent(self._weights(on_cpu, pairs).to(gramian.dtype), gramian.device)
        from gradsurgery.kernels import products

        coefficients = products.projections(
            gramian,
            orders,
            self._targets_for(gramian),
            beta=self._decay,
            vanished=_VANISHED,
            largest=_LARGEST_TARGET,
        )
        return coefficients.sum(0)

    def _targets_for(
        self, gramian: Float[Tensor, "domains domains"]
    ) -> Float[Tensor, "domains domains"]:
        if self.values["target"] is not None:
            return torch.full_like(gramian, self.values["target"])
        domains = len(gramian)
        if self._targets is None:
            self._targets = torch.zeros_like(gramian)
        if len(self._targets) != domains:
            raise ArgumentError(
                f"gradvac has targets for {len(self._targets)} domains, found {domains} gradients; "
                "build a new rule, or load_state_dict({}), when the domains change"
            )
        self._targets = self._targets.to(gramian)
        return self._targets


def step(cosine: float, target: float) -> float:
    """How many g_j of v's length v needs for its cosine with g_j to rise to `target`."""
    target = min(target, _LARGEST_TARGET)
    if cosine >= target:
        return 0.0
    sine, target_sine = sqrt(1 - cosine**2), sqrt(1 - target**2)
    return (target * sine - cosine * target_sine) / target_sine
