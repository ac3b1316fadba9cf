"""MGDA and CAGrad, both by the shortest step that has given inner products at least.

That is solved exactly, by non-negative least squares over as many unknowns as there are domains
(Lawson & Hanson 1974, chapter 23).
"""

from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gradsurgery.hyperparameters import Hyperparameter
from gradsurgery.rules.gramian import GramianRule

# Combinations of the gradients shorter than 1e-5 of them have no direction worth following.
_FLOOR = 1e-10
_TOLERANCE = 1e-12
_STEPS = 100


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


class CAGrad(GramianRule):
    """g* = argmax min_d g_d·g over ‖g − g_0‖ ≤ c ‖g_0‖, with g_0 = (1/D) Σ_d g_d.

    With g_w = Σ_d w_d g_d this is g* = g_0 + c ‖g_0‖ g_w / ‖g_w‖, where w minimises
    F(w) = g_w·g_0 + c ‖g_0‖ ‖g_w‖ over w ≥ 0, Σ_d w_d = 1.

    c: the radius, at least 0. Default 0.5. 0 gives the mean; below 1 the steps converge to a
        stationary point of the mean loss; from 1 on no domain is made worse, to first order.

    As in algorithm 1 the update is not divided by 1 + c² or 1 + c, which the published code does
    on request: D equal gradients give 1 + c times one of them.

    Source: Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS 2021,
    equation 3 and algorithm 1. F is not minimised by a general solver but by Newton's method on
    γ = min_d g_d·g*: the shortest step from g_0 that reaches γ has length c ‖g_0‖.

    >>> CAGrad()(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor([0.7500, 0.7500])
    """

    name = "cagrad"

    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (
        Hyperparameter("c", 0.5, "radius c around the mean gradient", source="Liu et al. 2021"),
    )

    def weights(self, gramian: Float[Tensor, "domains domains"]) -> Float[Tensor, " domains"]:
        """1/D + c ‖g_0‖ w / ‖g_w‖."""
        domains = len(gramian)
        mean = gramian.new_full((domains,), 1 / domains)
        largest = gramian.diagonal().max()
        if largest == 0:
            return mean
        scaled = gramian / largest
        radius = self.values["c"] * (mean @ scaled @ mean).clamp_min(0).sqrt().item()
        if radius == 0:
            return mean
        rows = coordinates(scaled, floor=_FLOOR)
        return mean + torch.from_numpy(step_of_length(radius, rows, (scaled @ mean).numpy()))


def step_of_length(
    radius: float,
    rows: Float[np.ndarray, "domains coordinates"],
    before: Float[np.ndarray, " domains"],
) -> Float[np.ndarray, " domains"]:
    """The v ≥ 0 with ‖Σ_d v_d rows[d]‖ = `radius` that raises `before` to the largest minimum.

    The length of the shortest step that reaches γ is convex and increasing in γ, so that Newton's
    method from above, γ ← F(v / Σ_d v_d), approaches the γ of `radius` without overshooting.
    """
    shares = np.full(len(rows), 1 / len(rows))
    gamma = np.inf
    for _ in range(_STEPS):
        reached = before @ shares + radius * np.linalg.norm(shares @ rows)
        if reached >= gamma - _TOLERANCE * radius:
            break
        gamma = reached
        step = least_distance(rows, gamma - before)
        if not step.any():
            break
        shares = step / step.sum()
    return shares * radius / np.linalg.norm(shares @ rows)


def least_distance(
    rows: Float[np.ndarray, "domains coordinates"], heights: Float[np.ndarray, " domains"]
) -> Float[np.ndarray, " domains"]:
    """The v ≥ 0 that make x = Σ_d v_d rows[d] the shortest x with rows[d]·x ≥ heights[d] for all d.

    The rows have to be linearly independent, so that there is such an x.
    """
    scale = np.abs(heights).max()
    if heights.max() <= 0:
        return np.zeros_like(heights)
    combination = closest_combination(rows, heights / scale)
    return np.asarray(combination * scale / (1 - combination @ (heights / scale)))


def closest_combination(
    rows: Float[np.ndarray, "domains coordinates"], heights: Float[np.ndarray, " domains"]
) -> Float[np.ndarray, " domains"]:
    """The u ≥ 0 that minimises ‖Σ_d u_d rows[d]‖² + (Σ_d u_d heights[d] − 1)²."""
    from scipy.optimize import nnls

    stacked = np.vstack([rows.T, heights])
    goal = np.append(np.zeros(rows.shape[1]), 1.0)
    return np.asarray(nnls(stacked, goal, maxiter=100 * len(rows))[0])


def coordinates(
    gramian: Float[Tensor, "domains domains"], *, floor: float = 0.0
) -> Float[np.ndarray, "domains domains"]:
    """Rows with the inner products of `gramian`.

    Eigenvalues below `floor` times the largest are raised to it.
    """
    values, vectors = np.linalg.eigh(gramian.numpy())
    return np.asarray(vectors * np.sqrt(np.maximum(values, floor * values[-1]).clip(min=0)))
