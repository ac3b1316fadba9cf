"""Holm's correction for several tests."""

from collections.abc import Sequence

from gradsurgery.errors import ArgumentError


def holm(p_values: Sequence[float | int]) -> list[float]:
    """Step-down adjusted p-values, in the order given.

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
