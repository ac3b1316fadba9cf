"""MGDA: the shortest convex combination of the gradients (Désidéri 2012)."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gradsurgery.rules.base import GramianRule
from gradsurgery.rules.least_distance import closest_combination, coordinates


class MGDA(GramianRule):
    """g* = Σ_d w_d g_d with w = argmin ‖Σ_d w_d g_d‖² over w ≥ 0, Σ_d w_d = 1.

    No domain is made worse, to first order: g*·g_d ≥ ‖g*‖² for every d. g* is 0 where the gradients
    cannot all be improved on. It is dominated by the shortest gradients and in length by none.

    The minimum is exact: with u = argmin ‖Σ_d u_d g_d‖² + (Σ_d u_d − 1)² over u ≥ 0, a problem of
    non-negative least squares in the Gramian's coordinates, w = u / Σ_d u_d.

    Source: Désidéri, "Multiple-gradient descent algorithm (MGDA) for multiobjective optimization",
    Comptes Rendus Mathématique 350, 2012; Sener & Koltun, "Multi-Task Learning as Multi-Objective
    Optimization", NeurIPS 2018, equation 3, where algorithm 2 approaches the same minimum.

    >>> MGDA()(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
    tensor([1., 1.])
    """

    name = "mgda"

    def weights(self, gramian: Float[Tensor, "domains domains"]) -> Float[Tensor, " domains"]:
        """The minimiser w."""
        domains = len(gramian)
        largest = gramian.diagonal().max()
        if largest == 0:
            return torch.full((domains,), 1 / domains, dtype=gramian.dtype)
        combination = closest_combination(coordinates(gramian / largest), np.ones(domains))
        return torch.from_numpy(combination / combination.sum())
