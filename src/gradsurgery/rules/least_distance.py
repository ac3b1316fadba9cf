"""The shortest step that has given inner products at least (Lawson & Hanson 1974, chapter 23).

Both MGDA and CAGrad come down to it. It is solved exactly, by non-negative least squares over as
many unknowns as there are domains.
"""

import numpy as np
from jaxtyping import Float
from torch import Tensor


def coordinates(
    gramian: Float[Tensor, "domains domains"], *, floor: float = 0.0
) -> Float[np.ndarray, "domains domains"]:
    """Rows with the inner products of `gramian`.

    Eigenvalues below `floor` times the largest are raised to it.
    """
    values, vectors = np.linalg.eigh(gramian.numpy())
    rows: np.ndarray = vectors * np.sqrt(np.maximum(values, floor * values[-1]).clip(min=0))
    return rows


def closest_combination(
    rows: Float[np.ndarray, "domains coordinates"], heights: Float[np.ndarray, " domains"]
) -> Float[np.ndarray, " domains"]:
    """The u ≥ 0 that minimises ‖Σ_d u_d rows[d]‖² + (Σ_d u_d heights[d] − 1)²."""
    from scipy.optimize import nnls

    stacked = np.vstack([rows.T, heights])
    goal = np.zeros(len(stacked))
    goal[-1] = 1.0
    combination: np.ndarray = nnls(stacked, goal, maxiter=100 * len(rows))[0]
    return combination


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
    step: np.ndarray = combination * scale / (1 - combination @ (heights / scale))
    return step
