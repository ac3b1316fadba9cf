import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from gradsurgery.errors import ArgumentError
from gradsurgery.results.ranking import (
    average_ranks,
    cliques,
    critical_difference,
    friedman,
    ranking,
)

# Ranks of C4.5, C4.5+m, C4.5+cf and C4.5+m+cf on 14 data sets (Demšar 2006, table 6).
METHODS = ["C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf"]
RANKS = [
    [4, 3, 2, 1],
    [1, 2, 3, 4],
    [4, 1, 2, 3],
    [4, 1, 3, 2],
    [4, 2, 3, 1],
    [1, 2.5, 4, 2.5],
    [3, 2, 4, 1],
    [2.5, 2.5, 4, 1],
    [4, 3, 2, 1],
    [2.5, 2.5, 2.5, 2.5],
    [4, 2.5, 1, 2.5],
    [3, 2, 4, 1],
    [4, 1, 2, 3],
    [3, 1, 4, 2],
]
SCORES = [
    (f"data set {number}", {m: -rank for m, rank in zip(METHODS, ranks, strict=True)})
    for number, ranks in enumerate(RANKS)
]


def test_demsars_example():
    found = ranking(METHODS, SCORES)
    assert found.methods == ("C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5")
    # the averages, and CD = 2.569 √(4 · 5 / (6 · 14)), as published
    assert found.ranks == pytest.approx((1.964, 2.000, 2.893, 3.143), abs=5e-4)
    assert found.critical_difference == pytest.approx(1.25, abs=5e-3)
    # "even the difference between the best and the worst performing algorithm is already smaller"
    assert found.cliques == (found.methods,)
    # 9.28 as published, without the correction for ties: 3 pairs and a group of 4 tied
    ties = 1 - (3 * (2**3 - 2) + (4**3 - 4)) / (14 * 4 * (4**2 - 1))
    assert found.statistic == pytest.approx(9.28 / ties, abs=0.01)
    assert found.p == pytest.approx(scipy.stats.chi2.sf(9.28 / ties, 3), abs=1e-4)


def test_demsars_example_at_ten_percent():
    difference = critical_difference(4, 14, level=0.10)
    # "at p = 0.10, CD is 2.291 √(4 · 5 / (6 · 14)) = 1.12": C4.5 is worse than C4.5+m and +m+cf
    assert difference == pytest.approx(1.12, abs=5e-3)
    assert cliques((1.964, 2.000, 2.893, 3.143), difference) == [(0, 2), (2, 3)]


@pytest.mark.parametrize(
    ("methods", "level", "q"),
    [(2, 0.05, 1.960), (3, 0.05, 2.343), (5, 0.05, 2.728), (10, 0.05, 3.164), (7, 0.1, 2.693)],
)
def test_critical_values_of_demsars_table_5(methods, level, q):
    expected = q * math.sqrt(methods * (methods + 1) / (6 * 9))
    assert critical_difference(methods, 9, level=level) == pytest.approx(expected, rel=5e-4)


scores = st.integers(3, 5).flatmap(
    lambda k: st.lists(st.lists(st.integers(0, 6), min_size=k, max_size=k), min_size=2, max_size=8)
)


@given(scores)
def test_friedman_as_scipy(rows):
    if all(len(set(row)) == 1 for row in rows):
        assert friedman(rows) == (0, 1)  # scipy divides by zero
    else:
        expected = scipy.stats.friedmanchisquare(*np.transpose(rows))
        assert friedman(rows) == pytest.approx((expected.statistic, expected.pvalue))
        rounded = [[value / 6 * 100 - 0.1 + 0.1 for value in row] for row in rows]
        assert friedman(rounded) == pytest.approx((expected.statistic, expected.pvalue))


@given(scores)
def test_average_ranks_as_scipy(rows):
    expected = np.mean([scipy.stats.rankdata(-np.array(row)) for row in rows], axis=0)
    assert average_ranks(rows) == pytest.approx(expected)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=7).map(sorted), st.integers(0, 10))
def test_cliques_are_the_largest_groups_within_the_difference(ranks, difference):
    def within(first, last):
        return ranks[last] - ranks[first] <= difference

    groups = [(i, j) for i in range(len(ranks)) for j in range(i + 1, len(ranks)) if within(i, j)]
    largest = [
        (i, j)
        for i, j in groups
        if not any((a, b) != (i, j) and a <= i and j <= b for a, b in groups)
    ]
    assert cliques(ranks, float(difference)) == largest


def test_cells_that_lack_a_method_are_left_out():
    found = ranking(["a", "b"], [("x", {"a": 1.0}), ("y", {"a": 1.0, "b": 2.0})])
    assert (found.cells, found.left_out) == (("y",), ("x",))
    assert (found.methods, found.ranks) == (("b", "a"), (1, 2))
    assert (found.statistic, found.p) == (None, None)


def test_two_cells_of_one_name_both_count():
    found = ranking(["a", "b"], [("x", {"a": 1.0, "b": 2.0}), ("x", {"a": 1.0, "b": 1.0})])
    assert found.cells == ("x", "x")
    assert found.ranks == (1.25, 1.75)


@pytest.mark.parametrize("cells", [[], [("x", {"a": 1.0})], [("x", {"a": 1.0}), ("y", {"b": 1.0})]])
def test_nothing_to_rank(cells):
    assert ranking(["a", "b"], cells) is None
    assert ranking(["a"], cells) is None


@pytest.mark.parametrize("rows", [[], [[1, 2, 3]], [[1, 2], [2, 1]]])
def test_friedman_needs_cells_and_methods(rows):
    with pytest.raises(ArgumentError, match="two cells and three methods"):
        friedman(rows)
