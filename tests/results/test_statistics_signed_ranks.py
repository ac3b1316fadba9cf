import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import example, given
from hypothesis import strategies as st

from gradsurgery.errors import ArgumentError
from gradsurgery.results.statistics import doubled_midranks, least_p, signed_ranks


def enumerated(differences):
    """p, W⁺ and W⁻ by going through all signs, with ranks counted one by one."""
    kept = [d for d in differences if d != 0]
    ranks = [
        sum(abs(other) < abs(d) for other in kept)
        + (sum(abs(other) == abs(d) for other in kept) + 1) / 2
        for d in kept
    ]
    observed = sum(rank for rank, d in zip(ranks, kept, strict=True) if d > 0)
    sums = [
        sum(rank for rank, positive in zip(ranks, signs, strict=True) if positive)
        for signs in itertools.product([False, True], repeat=len(kept))
    ]
    below = sum(w <= observed for w in sums) / len(sums)
    above = sum(w >= observed for w in sums) / len(sums)
    return min(1, 2 * min(below, above)), observed, sum(ranks) - observed


@given(st.lists(st.integers(-6, 6), max_size=10))
@example([])
@example([0, 0])
@example([3, 3, -3])
def test_every_sign_counted(differences):
    p, positive, negative = enumerated(differences)
    found = signed_ranks(differences)
    assert found.p == pytest.approx(p, rel=1e-12)
    assert (found.positive, found.negative) == (positive, negative)
    assert (found.n, found.zeros) == (len(differences) - differences.count(0), differences.count(0))


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=50, unique=True), st.data())
def test_without_ties_as_scipy_counts(sizes, data):
    signs = data.draw(st.lists(st.sampled_from([-1, 1]), min_size=len(sizes), max_size=len(sizes)))
    differences = [size * sign for size, sign in zip(sizes, signs, strict=True)]
    expected = scipy.stats.wilcoxon(differences, method="exact")
    found = signed_ranks(differences)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert min(found.positive, found.negative) == expected.statistic


def test_with_ties_as_scipy_permutes():
    differences = [2, 2, -1, 3, -3, 3, 1, 5, 5, 0, 4]
    every_sign = scipy.stats.PermutationMethod(n_resamples=np.inf)
    expected = scipy.stats.wilcoxon(differences, method=every_sign, zero_method="wilcox")
    assert signed_ranks(differences).p == pytest.approx(expected.pvalue, rel=1e-12)


def test_darwins_maize():
    # Heights of cross- and self-fertilised plants in 1/8 inch (Darwin 1876): sorted by size, the
    # negative 48 and 67 come 10th and 14th of 15.
    differences = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
    found = signed_ranks(differences)
    assert found.negative == 10 + 14
    assert found.positive == 120 - 24
    assert found.p == 0.041259765625  # published: two-sided p 0.041
    assert found.effect_size == pytest.approx((96 - 24) / 120)


def test_by_hand_with_ties_and_zeros():
    # Without the two zeros: 1, 1, −1, 2. Ranks 2, 2, 2, 4: W⁻ = 2, W⁺ = 8. Sums of 16 signs that
    # are at most 2: none negative (1), one of the three of rank 2 (3). p = 2 · 4/16.
    found = signed_ranks([1, 0, 1, -1, 2, 0])
    assert (found.positive, found.negative) == (8, 2)
    assert (found.n, found.zeros) == (4, 2)
    assert found.p == 0.5
    assert found.effect_size == pytest.approx(0.6)


@pytest.mark.parametrize("n", [1, 2, 5, 6, 20, 52])
def test_all_positive(n):
    differences = list(range(1, n + 1))
    assert signed_ranks(differences).p == min(1, 2 / 2**n) == least_p(n)
    assert signed_ranks([-d for d in differences]).p == min(1, 2 / 2**n)
    assert signed_ranks([7] * n).p == min(1, 2 / 2**n)  # ties change nothing here
    assert signed_ranks(differences).effect_size == 1


@pytest.mark.parametrize("differences", [[], [0.0], [0.0] * 20, [0.1 + 0.2 - 0.3] * 5])
def test_nothing_but_zeros(differences):
    found = signed_ranks(differences)
    assert (found.p, found.effect_size, found.n, found.zeros) == (1, 0, 0, len(differences))
    assert least_p(0) == 1


def test_rounding_of_fractions_parts_no_ties():
    # 3/10 − 2/10, 8/10 − 7/10 and 1/10 are the same tenth, and three different floats.
    tenths = [3 / 10 - 2 / 10, 8 / 10 - 7 / 10, 1 / 10]
    assert len(set(tenths)) == 3
    assert doubled_midranks(np.array(tenths)).tolist() == [4, 4, 4]
    differences = [*tenths, -(9 / 10 - 7 / 10)]
    assert signed_ranks(differences).p == enumerated([1, 1, 1, -2])[0]


@given(st.integers(2, 4000), st.data())
def test_accuracies_of_any_test_set_rank_as_their_counts(images, data):
    counts = data.draw(
        st.lists(st.tuples(st.integers(0, images), st.integers(0, images)), min_size=1, max_size=9)
    )
    exact = [a - b for a, b in counts]
    floats = [a / images - b / images for a, b in counts]
    assert signed_ranks(floats) == signed_ranks(exact)
    percent = [100 * (a / images) - 100 * (b / images) for a, b in counts]
    assert signed_ranks(percent) == signed_ranks(exact)


def test_different_test_sets_that_nearly_tie_are_told_apart():
    # 1/3000 and 1/2999 differ by 1e-7: far more than rounding does.
    assert doubled_midranks(np.array([1 / 3000, 1 / 2999])).tolist() == [2, 4]


@pytest.mark.parametrize("ties", [False, True])
def test_many_pairs_as_scipy_approximates(ties):
    draws = np.random.default_rng(3).normal(0.2, 1, size=150)
    differences = (np.round(draws, 1) if ties else draws).tolist()
    kept = [d for d in differences if d != 0]
    expected = scipy.stats.wilcoxon(kept, method="approx", correction=False)
    assert signed_ranks(differences).p == pytest.approx(expected.pvalue, rel=1e-9)


def test_the_approximation_meets_the_exact_distribution():
    draws = np.random.default_rng(5).normal(0.25, 1, size=101)
    exact = signed_ranks(draws[:100].tolist()).p
    assert signed_ranks(draws.tolist()).p == pytest.approx(exact, rel=0.3)
    assert scipy.stats.wilcoxon(draws[:100], method="exact").pvalue == pytest.approx(exact)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(value):
    with pytest.raises(ArgumentError, match="differences must be finite"):
        signed_ranks([0.1, value])
