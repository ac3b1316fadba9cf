"""One method against the baseline, pair by pair."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gradsurgery.errors import ArgumentError
from gradsurgery.results.statistics.bootstrap import bootstrap_interval
from gradsurgery.results.statistics.holm import holm
from gradsurgery.results.statistics.wilcoxon import signed_ranks

SIGNIFICANCE = 0.05


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

    `seed` is the bootstrap's. Raises `ArgumentError` without a pair or with an odd one.

    >>> compare_paired([0.7, 0.8], [0.6, 0.8], seed=0).zeros
    1
    """
    if len(values) != len(baseline):
        raise ArgumentError(
            f"pairs need as many values as the baseline has, found {len(values)} "
            f"and {len(baseline)}"
        )
    differences = [value - other for value, other in zip(values, baseline, strict=True)]
    low, high = bootstrap_interval(differences, seed=seed)
    test = signed_ranks(differences)
    mean = sum(differences) / len(differences)
    return PairedComparison(
        mean, low, high, test.p, test.p, test.effect_size, len(differences), test.zeros
    )


def corrected(comparisons: Sequence[PairedComparison]) -> list[PairedComparison]:
    """The comparisons with `p_holm` corrected over all of them."""
    adjusted = holm([comparison.p for comparison in comparisons])
    return [replace(c, p_holm=p) for c, p in zip(comparisons, adjusted, strict=True)]
