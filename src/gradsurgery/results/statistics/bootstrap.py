"""Bootstrap interval of a mean."""

from collections.abc import Sequence

import numpy as np

from gradsurgery.errors import ArgumentError

RESAMPLES = 10_000


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
    if not len(values):
        raise ArgumentError("a bootstrap interval needs at least one value, found none")
    if not 0 < level < 1:
        raise ArgumentError(f"level must lie between 0 and 1, found {level}")
    array = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(len(array), size=(resamples, len(array)))
    low, high = np.quantile(array[drawn].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
