"""The statistics of a comparison: paired tests with their corrections, and intervals of means.

The paired Wilcoxon signed-rank test is exact, with ties too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from gradsurgery.errors import ArgumentError

SIGNIFICANCE = 0.05
CONFIDENCE = 0.95
"""Of every interval."""
RESAMPLES = 10_000
EXACT_UP_TO = 100
TOLERANCE = 1e-12
"""Up to which a difference is a rounding error: of fractions those are of about 1e-16, in percent
1e-14, and two fractions that do differ, of up to a million images, differ by more."""


@dataclass(frozen=True)
class PairedComparison:
    """A method minus the baseline over pairs of runs, in the unit of the values.

    `difference` is the mean, from `low` to `high` its 95 % bootstrap percentile interval; `p` the
    two-sided Wilcoxon signed-rank test's and `p_holm` the same corrected for the family of tests;
    `effect_size` the rank-biserial correlation in [−1, 1]; `n` counts the pairs, `zeros` those
    without a difference, which the test leaves out.
    """

    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    effect_size: float
    n: int
    zeros: int

    @property
    def significant(self) -> bool:
        """Whether p < 0.05, one test taken alone."""
        return self.p < SIGNIFICANCE

    @property
    def significant_corrected(self) -> bool:
        """Whether p < 0.05 after Holm's correction."""
        return self.p_holm < SIGNIFICANCE


def compare_paired(
    values: Sequence[float | int], baseline: Sequence[float | int], *, seed: int
) -> PairedComparison:
    """Compare pairs `values[i]`, `baseline[i]`; `p_holm` is that of a family of one.

    A difference that is only a rounding error, up to 1e-12, is 0. `seed` is the bootstrap's. Raises
    `ArgumentError` without a pair or with an odd one.

    >>> compare_paired([0.7, 0.8], [0.6, 0.8], seed=0).zeros
    1
    """
    if len(values) != len(baseline):
        found = f"{len(values)} and {len(baseline)}"
        raise ArgumentError(f"pairs need as many values as the baseline has, found {found}")
    differences = [_exact(value - other) for value, other in zip(values, baseline, strict=True)]
    low, high = map(_exact, bootstrap_interval(differences, seed=seed))
    test = signed_ranks(differences)
    mean = _exact(fmean(differences))
    return PairedComparison(
        mean, low, high, test.p, test.p, test.effect_size, len(differences), test.zeros
    )


def corrected(comparisons: Sequence[PairedComparison]) -> list[PairedComparison]:
    """The comparisons with `p_holm` corrected over all of them."""
    adjusted = holm([comparison.p for comparison in comparisons])
    return [replace(c, p_holm=p) for c, p in zip(comparisons, adjusted, strict=True)]


def holm(p_values: Sequence[float | int]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given.

    Of m values sorted p₍₁₎ ≤ … ≤ p₍ₘ₎, the adjusted one is
    max over j ≤ i of min(1, (m − j + 1) p₍ⱼ₎). Rejecting where it is below α keeps the probability
    of any false rejection at α or less, however the tests depend on each other.

    Raises `ArgumentError` for a value outside [0, 1].

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    for p in p_values:
        if not 0 <= p <= 1:  # also true for NaN
            raise ArgumentError(f"a p-value is from 0 to 1, found {p}")
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, position in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[position]))
        adjusted[position] = largest
    return adjusted


def bootstrap_interval(
    values: Sequence[float | int], *, seed: int, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """The 95 % percentile interval of the mean: from quantile 0.025 to 0.975 of resampled means.

    Each resample draws n of the n values with replacement. Few values make it too narrow: with
    n = 3 it cannot reach beyond them, and for one value it is that value.

    values: one at least, else `ArgumentError`. seed: of numpy's generator; the same seed and n draw
        the same positions.

    >>> bootstrap_interval([2.0, 2.0], seed=0)
    (2.0, 2.0)

    Source: Efron & Tibshirani 1993, "An introduction to the bootstrap", chapter 13.
    """
    _check_any(values, "a bootstrap interval")
    if len(values) == 1:
        return float(values[0]), float(values[0])
    from scipy.stats import bootstrap

    found = bootstrap(
        (np.asarray(values, dtype=np.float64),),
        np.mean,
        n_resamples=resamples,
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


class MeanInterval(NamedTuple):
    """A mean over n runs, from `low` to `high`; both are None where n is 1."""

    mean: float
    low: float | None
    high: float | None
    n: int


def mean_interval(values: Sequence[float]) -> MeanInterval:
    """Student's 95 % interval of a mean: x̄ ± t s / √n.

    t is the quantile 0.975 of Student's distribution with n − 1 degrees of freedom, s the standard
    deviation with n − 1 in its denominator. With two or three runs it is wide, as it must be where
    the spread is known so badly.

    values: one a run, taken to be normally distributed; raises `ArgumentError` for none.

    >>> mean_interval([2.0, 2.0])
    MeanInterval(mean=2.0, low=2.0, high=2.0, n=2)
    """
    _check_any(values, "a mean")
    n = len(values)
    mean = fmean(values)
    if n == 1:
        return MeanInterval(mean, None, None, 1)
    from scipy.special import stdtrit

    margin = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * float(stdev(values)) / math.sqrt(n)
    return MeanInterval(mean, mean - margin, mean + margin, n)


def _exact(value: float | int) -> float:
    """The value, or 0 where it is only a rounding error."""
    return 0.0 if abs(value) <= TOLERANCE else float(value)


def _check_any(values: Sequence[float | int], what: str) -> None:
    if not len(values):
        raise ArgumentError(f"{what} needs at least one value, found none")


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


def signed_ranks(differences: Sequence[float | int]) -> SignedRanks:
    """The two-sided signed-rank test that paired differences are symmetric about 0.

    The differences d_i ≠ 0 are ranked by abs(d_i), ties sharing the mean of their ranks;
    W⁺ = Σ rank(d_i) over d_i > 0. Zeros are dropped, as Wilcoxon did, and counted. Under the
    hypothesis all 2ⁿ signs are equally likely, so that P(W⁺ = w) is counted exactly, whatever the
    ties: p = min(1, 2 min(P(W⁺ ≤ w), P(W⁺ ≥ w))). Above 100 differences W⁺ is taken as normal with
    mean Σ r_i / 2 and variance Σ r_i² / 4, which holds the correction for ties. Nothing but zeros
    gives p = 1.

    differences: one a pair, finite, else `ArgumentError`. Absolute values that differ by up to
        1e-12 are tied, and those no larger are zero.

    >>> signed_ranks([0.1, 0.2, 0.3, 0.4, 0.0]).p  # 2 / 2⁴
    0.125

    Source: Wilcoxon 1945, "Individual comparisons by ranking methods"; the exact distribution with
    ties as in Hollander & Wolfe, "Nonparametric statistical methods", section 3.1.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ArgumentError(f"differences must be finite, found {list(differences)}")
    kept = values[np.abs(values) > TOLERANCE]
    doubled = doubled_midranks(np.abs(kept))
    positive, total = int(doubled[kept > 0].sum()), int(doubled.sum())
    p = _exact_p(doubled, positive) if len(kept) <= EXACT_UP_TO else _normal_p(doubled, positive)
    return SignedRanks(positive / 2, (total - positive) / 2, p, len(kept), len(values) - len(kept))


def least_p(n: int, tests: int = 1) -> float:
    """The least p that `n` differences can give: 2 / 2ⁿ, and 1 for none.

    After Holm's correction over so many tests it is as many times that, and at most 1.

    >>> least_p(5), least_p(6, tests=64)  # five seeds cannot reach 0.05
    (0.0625, 1.0)
    """
    return min(1.0, tests * 2.0 ** (1 - n))


def doubled_midranks(sizes: Float64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Twice the rank of every value, 1 for the smallest, ties at the mean of their ranks.

    Values are tied where no gap between neighbours in their order exceeds 1e-12. Rounding them to a
    grid instead would part two that lie on both sides of a grid point's middle.

    >>> doubled_midranks(np.array([0.3, 0.1 + 0.2, 0.1])).tolist()
    [5, 5, 2]
    """
    from scipy.stats import rankdata

    order = np.argsort(sizes, kind="stable")
    group = np.concatenate([[0], np.cumsum(np.diff(sizes[order]) > TOLERANCE)])[: len(sizes)]
    ranks = np.empty(len(sizes), dtype=np.int64)
    ranks[order] = 2 * rankdata(group)
    return ranks


def _exact_p(doubled: Int64[np.ndarray, " n"], positive: int) -> float:
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


def _normal_p(doubled: Int64[np.ndarray, " n"], positive: int) -> float:
    """Two-sided p of the normal distribution, without a correction for continuity."""
    deviation = math.sqrt(float((doubled.astype(np.float64) ** 2).sum()) / 4)
    return math.erfc(abs(positive - int(doubled.sum()) / 2) / deviation / math.sqrt(2))
