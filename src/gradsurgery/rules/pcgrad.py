"""PCGrad: projecting conflicting gradients (Yu et al. 2020)."""

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from gradsurgery.kernels.network import kernels_for
from gradsurgery.rules.base import GramianRule


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
        coefficients = torch.eye(len(gramian), dtype=gramian.dtype)
        for domain, other in self.random.pairs(len(gramian)):  # algorithm 1, line 4
            product = coefficients[domain] @ gramian[:, other]
            if product < 0:  # lines 5 and 6
                coefficients[domain, other] -= product / gramian[other, other]
        return coefficients.sum(0)

    @override
    def weights_on_device(
        self, gramian: Float[Tensor, "domains domains"]
    ) -> Float[Tensor, " domains"]:
        if (kernels := kernels_for([gramian])) is None:
            return self.weights(gramian)
        orders = self.random.orders_on(len(gramian), gramian.device)
        return kernels.projections(gramian, orders).sum(0)
