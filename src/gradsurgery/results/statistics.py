"""The statistics of a comparison: paired tests with their corrections, and intervals of means."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from gradsurgery.errors import ArgumentError
from gradsurgery.results.wilcoxon import TOLERANCE, signed_ranks

SIGNIFICANCE = 0.05
RESAMPLES = 10_000


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
        raise ArgumentError(
            f"pairs need as many values as the baseline has, found {len(values)} "
            f"and {len(baseline)}"
        )
    differences = [_exact(value - other) for value, other in zip(values, baseline, strict=True)]
    low, high = map(_exact, bootstrap_interval(differences, seed=seed))
    test = signed_ranks(differences)
    mean = _exact(math.fsum(differences) / len(differences))
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
    values: Sequence[float | int], *, seed: int, level: float = 0.95, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """The percentile interval of the mean: quantiles (1 ∓ level) / 2 of resampled means.

    Each resample draws n of the n values with replacement. Few values make it too narrow: with
    n = 3 it cannot reach beyond them, and for one value it is that value.

    Args:
        values: the paired differences.
        seed: of numpy's generator; the same seed and n draw the same positions.
        level: of confidence, between 0 and 1.
        resamples: how many means are drawn.

    Raises `ArgumentError` where there is no value, or the level is not between 0 and 1.

    >>> bootstrap_interval([2.0, 2.0], seed=0)
    (2.0, 2.0)

    Source: Efron & Tibshirani 1993, "An introduction to the bootstrap", chapter 13.
    """
    _check(values, level, "a bootstrap interval")
    if len(values) == 1:
        return float(values[0]), float(values[0])
    import numpy as np
    from scipy.stats import bootstrap

    found = bootstrap(
        (np.asarray(values, dtype=np.float64),),
        np.mean,
        n_resamples=resamples,
        confidence_level=level,
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


def mean_interval(values: Sequence[float], *, level: float = 0.95) -> MeanInterval:
    """Student's interval of a mean: x̄ ± t s / √n.

    t is the quantile (1 + level) / 2 of Student's distribution with n − 1 degrees of freedom, s the
    standard deviation with n − 1 in its denominator. With two or three runs it is wide, as it must
    be where the spread is known so badly.

    Args:
        values: one a run, taken to be normally distributed.
        level: of confidence, between 0 and 1.

    Raises `ArgumentError` where there is no value, or the level is not between 0 and 1.

    >>> mean_interval([2.0, 2.0])
    MeanInterval(mean=2.0, low=2.0, high=2.0, n=2)
    """
    _check(values, level, "a mean")
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return MeanInterval(mean, None, None, 1)
    from scipy.special import stdtrit

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    margin = float(stdtrit(n - 1, (1 + level) / 2)) * deviation / math.sqrt(n)
    return MeanInterval(mean, mean - margin, mean + margin, n)


def _exact(value: float | int) -> float:
    """The value, or 0 where it is only a rounding error."""
    return 0.0 if abs(value) <= TOLERANCE else float(value)


def _check(values: Sequence[float | int], level: float, what: str) -> None:
    if not len(values):
        raise ArgumentError(f"{what} needs at least one value, found none")
    if not 0 < level < 1:
        raise ArgumentError(f"level must lie between 0 and 1, found {level}")
