"""The mean over runs and how far it can be trusted."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from gradsurgery.errors import ArgumentError


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
    if not len(values):
        raise ArgumentError("a mean needs at least one value, found none")
    if not 0 < level < 1:
        raise ArgumentError(f"level must lie between 0 and 1, found {level}")
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return MeanInterval(mean, None, None, 1)
    from scipy.special import stdtrit

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    margin = float(stdtrit(n - 1, (1 + level) / 2)) * deviation / math.sqrt(n)
    return MeanInterval(mean, mean - margin, mean + margin, n)
