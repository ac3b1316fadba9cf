"""The difference of two models on the same images, against other software and known truths."""

import numpy as np
import pytest
from scipy import stats

from gradsurgery.documents.tally import Tally
from gradsurgery.errors import ArgumentError
from gradsurgery.results.classification import compare_answers
from gradsurgery.results.intervals import paired_difference


def paired(images: list[int], second: list[int], first: list[int]) -> Tally:
    """By group: how many images there are, and how many one of the two models alone has right."""
    sizes = zip(images, second, first, strict=True)
    rows = [(g, *pair) for g, (m, s, f) in enumerate(sizes) for pair in
            [(0, 1)] * s + [(1, 0)] * f + [(1, 1)] * (m - s - f)]  # fmt: skip
    group, old, new = np.array(rows, np.int64).reshape(-1, 3).T
    unknown = np.full(len(group), np.nan, np.float32)
    return Tally.of(old, new, unknown, unknown, 2, group=group)


def alone(images: int, second: int, first: int) -> Tally:
    return paired([images], [second], [first]).model_copy(update={"groups": []})


def test_the_interval_is_that_of_other_software():
    # Cavo et al. 2012, 59, 6, 16 and 80 patients: R's contingencytables prints
    # "Wald CI with Bonett-Price adjustment: estimate = -0.0621 (95% CI -0.1195 to -0.0032)"
    found = paired_difference(Tally(confusion=["0:59 1:6", "0:16 1:80"]))
    shown = [round(x, 4) for x in (found.value, found.low, found.high)]
    assert shown == [-0.0621, -0.1195, -0.0032]


def test_figures_are_those_of_the_table_of_answers():
    found = compare_answers(Tally(confusion=["0:80 1:16", "0:6 1:59"]))
    assert (found.images, found.only_this, found.only_other) == (161, 16, 6)
    assert (found.accuracy, found.other) == (75 / 161, 65 / 161)
    assert found.difference.value == pytest.approx(10 / 161)
    assert found.verdict == "better"
    assert compare_answers(Tally(confusion=["0:80 1:6", "0:16 1:59"])).verdict == "worse"
    assert compare_answers(Tally(confusion=["0:80 1:6", "0:6 1:59"])).verdict == "not told apart"


@pytest.mark.parametrize("images", [30, 1000])
def test_models_are_told_apart_where_mcnemar_s_test_does(images):
    """Always where the exact p is below 0.05, and never where the mid-p is above 0.055."""
    for either in range(1, 30):
        for second in range(either + 1):
            exact = stats.binomtest(second, either).pvalue
            mid = exact - (2 * second != either) * stats.binom.pmf(second, either, 0.5)
            found = compare_answers(alone(images, second, either - second))
            if exact < 0.05:
                assert found.verdict == ("better" if 2 * second > either else "worse")
            elif mid > 0.055:
                assert found.verdict == "not told apart"


@pytest.mark.parametrize(("second", "first"), [(0.02, 0.02), (0.2, 0.05), (0.4, 0.1), (0.3, 0.3)])
def test_intervals_hold_the_truth(second, first):
    """Exactly, over every table of 20 images, each with its probability."""
    held = 0.0
    for b in range(21):
        for c in range(21 - b):
            found = paired_difference(alone(20, b, c))
            if found.low <= second - first <= found.high:
                rest = 1 - second - first
                held += stats.multinomial.pmf([b, c, 20 - b - c], 20, [second, first, rest])
    assert held >= 0.94


def test_nothing_apart_is_no_certainty():
    found = paired_difference(alone(100, 0, 0))
    assert found.value == 0
    # p = 1 / 102 each
    assert found.high == -found.low == pytest.approx(1.959964 * np.sqrt(2 / 102 / 102), rel=1e-6)


def test_no_image_is_no_comparison():
    with pytest.raises(ArgumentError, match="images that are new to both, found none"):
        compare_answers(Tally(confusion=["", ""]))


def test_groups_have_their_effective_number_of_images():
    images = np.array([10, 20, 10, 30, 20, 10])
    second = np.array([3, 4, 2, 9, 2, 3])
    first = np.array([0, 1, 2, 1, 0, 1])
    found = paired_difference(paired(images.tolist(), second.tolist(), first.tolist()))
    value = (second - first).sum() / 100
    without = [
        np.delete(second - first, g).sum() / np.delete(images, g).sum() for g in range(6)
    ]  # fmt: skip
    variance = 5 / 6 * ((np.array(without) - value) ** 2).sum()
    b, c = second.sum() / 100, first.sum() / 100
    n = min(100, (b + c - value**2) / variance)
    quantile = stats.t.ppf(0.975, 100**2 / (images**2).sum() - 1)
    n *= (stats.norm.ppf(0.975) / quantile) ** 2
    p, q = (b * n + 1) / (n + 2), (c * n + 1) / (n + 2)
    reach = stats.norm.ppf(0.975) * np.sqrt((p + q - (p - q) ** 2) / (n + 2))
    assert found.value == pytest.approx(value)
    assert (found.low, found.high) == pytest.approx((p - q - reach, p - q + reach), rel=1e-9)


def test_what_one_patient_alone_has_tells_no_model_apart():
    some = ([10] * 20, [9] + [0] * 19, [0] * 20)
    assert compare_answers(paired(*some)).verdict == "not told apart"
    assert compare_answers(alone(200, 9, 0)).verdict == "better"  # were they all independent
    of_one = paired_difference(paired([30], [9], [0]))
    assert (of_one.low, of_one.high) == (-1, 1)


def test_images_that_are_one_each_have_the_interval_of_images():
    single = paired([1] * 8, [1, 1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0, 0])
    assert paired_difference(single) == paired_difference(alone(8, 3, 1))


@pytest.mark.parametrize("groups", [6, 25])
def test_intervals_of_groups_hold_the_truth(groups):
    """Of each group one model has more right, either as often: on the whole neither has."""
    random = np.random.default_rng(groups)
    held = plain = 0
    trials = 300
    for _ in range(trials):
        images = random.integers(5, 30, groups)
        apart = random.binomial(images, random.beta(1, 3, groups))
        second = random.binomial(apart, random.beta(0.7, 0.7, groups))
        lists = (images.tolist(), second.tolist(), (apart - second).tolist())
        found = paired_difference(paired(*lists))
        held += found.low <= 0 <= found.high
        ungrouped = paired_difference(alone(*(sum(each) for each in lists)))
        plain += ungrouped.low <= 0 <= ungrouped.high
    assert held / trials >= 0.92
    assert plain / trials < 0.85
