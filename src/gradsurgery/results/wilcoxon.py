"""The paired Wilcoxon signed-rank test, exact with ties too."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from gradsurgery.errors import ArgumentError

EXACT_UP_TO = 100
TOLERANCE = 1e-12


@dataclass(frozen=True)
class SignedRanks:
    """What the test found.

    `positive` and `negative` are W⁺ and W⁻, the sums of the ranks of the positive and of the
    negative differences; `n` counts the differences that are not zero, `zeros` those that are.
    """

    positive: float
    negative: float
    p: float
    n: int
    zeros: int

    @property
    def effect_size(self) -> float:
        """The matched-pairs rank-biserial correlation, (W⁺ − W⁻) / (W⁺ + W⁻), in [−1, 1].

        1 where every difference is positive, 0 where all are zero (Kerby 2014).
        """
        total = self.positive + self.negative
        return (self.positive - self.negative) / total if total else 0.0


def signed_ranks(
    differences: Sequence[float | int], *, tolerance: float = TOLERANCE
) -> SignedRanks:
    """The two-sided signed-rank test that paired differences are symmetric about 0.

    The differences d_i ≠ 0 are ranked by abs(d_i), ties sharing the mean of their ranks;
    W⁺ = Σ rank(d_i) over d_i > 0. Zeros are dropped, as Wilcoxon did, and counted. Under the
    hypothesis all 2ⁿ signs are equally likely, so that P(W⁺ = w) is counted exactly, whatever the
    ties: p = min(1, 2 min(P(W⁺ ≤ w), P(W⁺ ≥ w))). Above 100 differences W⁺ is taken as normal with
    mean Σ r_i / 2 and variance Σ r_i² / 4, which holds the correction for ties. Nothing but zeros
    gives p = 1.

    Args:
        differences: one a pair.
        tolerance: absolute values that differ by no more are tied, and those no larger are zero.
            The difference of two fractions has a rounding error of about 1e-16, in percent 1e-14;
            two that do differ, with up to a million images, differ by more than 1e-12.

    Raises `ArgumentError` where a difference is not finite.

    >>> signed_ranks([0.1, 0.2, 0.3, 0.4, 0.0]).p  # 2 / 2⁴
    0.125

    Source: Wilcoxon 1945, "Individual comparisons by ranking methods"; the exact distribution with
    ties as in Hollander & Wolfe, "Nonparametric statistical methods", section 3.1.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ArgumentError(f"differences must be finite, found {list(differences)}")
    kept = values[np.abs(values) > tolerance]
    doubled = doubled_midranks(np.abs(kept), tolerance)
    positive, total = int(doubled[kept > 0].sum()), int(doubled.sum())
    p = _exact(doubled, positive) if len(kept) <= EXACT_UP_TO else _normal(doubled, positive)
    return SignedRanks(positive / 2, (total - positive) / 2, p, len(kept), len(values) - len(kept))


def least_p(n: int) -> float:
    """The least p that `n` differences can give: 2 / 2ⁿ, and 1 for none.

    >>> least_p(5)  # five seeds cannot reach 0.05
    0.0625
    """
    return min(1.0, 2.0 ** (1 - n))


def doubled_midranks(
    sizes: Float64[np.ndarray, " n"], tolerance: float = TOLERANCE
) -> Int64[np.ndarray, " n"]:
    """Twice the rank of every value, 1 for the smallest, ties at the mean of their ranks.

    Values are tied where no gap between neighbours in their order exceeds `tolerance`. Rounding
    them to a grid instead would part two that lie on both sides of a grid point's middle.

    >>> doubled_midranks(np.array([0.3, 0.1 + 0.2, 0.1])).tolist()
    [5, 5, 2]
    """
    from scipy.stats import rankdata

    order = np.argsort(sizes, kind="stable")
    group = np.concatenate([[0], np.cumsum(np.diff(sizes[order]) > tolerance)])[: len(sizes)]
    ranks = np.empty(len(sizes), dtype=np.int64)
    ranks[order] = 2 * rankdata(group)
    return ranks


def _exact(doubled: Int64[np.ndarray, " n"], positive: int) -> float:
    """Two-sided p from the distribution of the sum over all signs, rank by rank.

    Each probability is a sum of positive terms that halve exactly: rounding touches it only where
    more than 52 differences need more than 53 bits.
    """
    probability = np.zeros(int(doubled.sum()) + 1)
    probability[0] = 1.0
    for rank in doubled:
        shifted = np.zeros_like(probability)
        shifted[rank:] = probability[: len(probability) - rank]
        probability = (probability + shifted) / 2
    tail = min(probability[: positive + 1].sum(), probability[positive:].sum())
    return min(1.0, 2 * float(tail))


def _normal(doubled: Int64[np.ndarray, " n"], positive: int) -> float:
    """Two-sided p of the normal distribution, without a correction for continuity."""
    deviation = math.sqrt(float((doubled.astype(np.float64) ** 2).sum()) / 4)
    return math.erfc(abs(positive - int(doubled.sum()) / 2) / deviation / math.sqrt(2))
