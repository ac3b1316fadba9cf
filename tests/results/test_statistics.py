import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from gradsurgery.errors import ArgumentError
from gradsurgery.results.statistics import bootstrap_interval, compare_paired, corrected, holm

fractions = st.floats(0, 1, allow_nan=False)


def rejected(p_values, level):
    """Holm's procedure as he tells it: step down, stop at the first that is not rejected."""
    left = dict(enumerate(p_values))
    found = set()
    while left:
        position = min(left, key=left.__getitem__)
        if left[position] > level / len(left):
            break
        found.add(position)
        del left[position]
    return found


@given(st.lists(fractions, max_size=8), st.floats(0.001, 0.999))
def test_an_adjusted_p_says_what_the_procedure_rejects(p_values, level):
    adjusted = holm(p_values)
    # The boundary itself may fall on either side of a rounding error.
    if all(abs(p - level) > 1e-9 for p in adjusted):
        assert {i for i, p in enumerate(adjusted) if p <= level} == rejected(p_values, level)
    assert all(a >= p for a, p in zip(adjusted, p_values, strict=True))


def test_holm_by_hand():
    # sorted 0.005, 0.01, 0.03, 0.04: 4 · 0.005, 3 · 0.01, 2 · 0.03, and 0.04 is raised to 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []
    assert holm([0.02]) == [0.02]


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_holm_refuses_what_is_no_p(p):
    with pytest.raises(ArgumentError, match="a p-value is from 0 to 1"):
        holm([0.5, p])


@pytest.mark.parametrize("values", [[1.0, 4.0, 10.0], [-2.0, 0.0, 3.0, 3.5]])
def test_tiny_samples_have_the_quantiles_of_all_resamples(values):
    means = np.sort([np.mean(drawn) for drawn in itertools.product(values, repeat=len(values))])
    found = bootstrap_interval(values, seed=1, resamples=200_000)
    for quantile, end in zip((0.025, 0.975), found, strict=True):
        # Within the means whose exact probability is a sampling error away.
        low, high = np.quantile(means, [quantile - 0.004, quantile + 0.004], method="inverted_cdf")
        assert low <= end <= high


def test_as_scipys_bootstrap():
    values = np.random.default_rng(0).normal(1.5, 2, size=20).tolist()
    expected = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=100_000, random_state=1
    ).confidence_interval
    assert bootstrap_interval(values, seed=0) == pytest.approx(tuple(expected), abs=0.03)


def test_the_interval_depends_on_the_seed_alone():
    values = [0.5, 1.0, 4.0, 2.0]
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3, resamples=50) != bootstrap_interval(
        values, seed=4, resamples=50
    )


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=12))
def test_the_interval_lies_within_the_values(values):
    low, high = bootstrap_interval(values, seed=0, resamples=200)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


def test_bootstrap_refuses():
    with pytest.raises(ArgumentError, match="at least one value"):
        bootstrap_interval([], seed=0)


def test_a_paired_comparison_by_hand():
    # differences 3, −1, 0, 2: mean 1; without the zero ranks 3, 1, 2: W⁺ = 5, W⁻ = 1, of 8 signs
    # those with W⁻ ≤ 1 are 2: p = 0.5; effect (5 − 1) / 6
    found = compare_paired([13, 9, 10, 12], [10, 10, 10, 10], seed=0)
    assert (found.difference, found.n, found.zeros) == (1, 4, 1)
    assert (found.p, found.p_holm) == (0.5, 0.5)
    assert found.effect_size == pytest.approx(2 / 3)
    assert -1 <= found.low < 1 < found.high <= 3
    assert not found.significant


def test_rounding_errors_are_no_differences():
    # In floating point 0.1 + 0.2 is not 0.3, and 1.1 − 1 and 1 − 0.9 are not equal.
    same = compare_paired([0.1 + 0.2, 0.7], [0.3, 0.7], seed=0)
    assert (same.difference, same.low, same.high, same.zeros) == (0, 0, 0, 2)
    assert 1.1 - 1 + (0.9 - 1) != 0
    balanced = compare_paired([1.1, 0.9], [1, 1], seed=0)
    assert (balanced.difference, balanced.zeros) == (0, 0)
    assert str(balanced.difference) == "0.0"


def test_stars_need_the_level_and_daggers_the_corrected_level():
    better = compare_paired(list(range(1, 7)), [0] * 6, seed=0)  # 2 / 2⁶ = 0.03125
    same = compare_paired([0] * 6, [0] * 6, seed=0)
    alone, beside = corrected([better]), corrected([better, same])
    assert (alone[0].significant, alone[0].significant_corrected) == (True, True)
    assert (beside[0].p, beside[0].p_holm) == (0.03125, 0.0625)
    assert (beside[0].significant, beside[0].significant_corrected) == (True, False)
    assert beside[1].p_holm == 1


def test_pairs_need_both():
    with pytest.raises(ArgumentError, match="found 2 and 1"):
        compare_paired([1, 2], [1], seed=0)
