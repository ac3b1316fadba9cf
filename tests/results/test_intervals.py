"""Intervals of images that belong to groups, against equations, scikit-learn and known truths."""

import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from gradsurgery.documents.tally import Tally
from gradsurgery.results.classification import accuracy_by_bin, accuracy_of, assess
from gradsurgery.results.intervals import proportion


def counted(right: list[int], images: list[int]) -> Tally:
    """Groups of images of one class, so many of each and so many right."""
    label = np.zeros(sum(images), np.int64)
    predicted = np.concatenate([np.arange(m) >= r for r, m in zip(right, images, strict=True)])
    group = np.repeat(np.arange(len(images)), images)
    loss = np.where(predicted, 2.0, 0.5)
    confidence = np.full(len(label), 0.7, np.float32)
    return Tally.of(label, predicted.astype(np.int64), confidence, loss, 2, group=group)


def wilson(p: float, n: float, quantile: float) -> tuple[float, float]:
    """The solutions of |p - x| = quantile √(x (1 - x) / n)."""
    k = quantile**2 / n
    return tuple(np.sort(np.roots([1 + k, -2 * p - k, p * p]).real))


def test_the_effective_number_of_images_is_that_of_the_equations():
    right, m = np.array([9, 10, 4, 8, 1, 10]), 10
    p, groups = right.sum() / 60, 6
    # of groups of one size the jackknife's variance is that of a mean of their fractions
    variance = (right / m).var(ddof=1) / groups
    found = accuracy_of(counted(right.tolist(), [m] * groups))
    low, high = wilson(p, p * (1 - p) / variance, stats.t.ppf(0.975, groups - 1))
    assert found.value == pytest.approx(p)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9)
    plain = proportion(int(right.sum()), 60)
    assert found.high - found.low > 1.5 * (plain.high - plain.low)


def test_groups_that_are_all_right_count_as_an_image_each():
    images = [50, 10, 20, 20]
    found = accuracy_of(counted(images, images))
    groups = 100**2 / (50**2 + 10**2 + 20**2 + 20**2)
    low, _ = wilson(1.0, groups, stats.t.ppf(0.975, groups - 1))
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(low, rel=1e-6)


def test_of_one_group_nothing_follows():
    found = assess(counted([60], [80]), ["a", "b"])
    for each in (found.accuracy, found.balanced_accuracy, found.macro_f1, found.classes[0].recall):
        assert (each.low, each.high) == (0, 1)
    assert (found.calibration_error.low, found.calibration_error.high) == (0, 1)
    assert (found.log_loss.low, found.log_loss.high) == (0, np.inf)


def test_images_that_are_one_each_have_the_intervals_of_images():
    single = counted([1, 0, 1, 1], [1, 1, 1, 1])
    assert not single.in_groups
    assert accuracy_of(single) == proportion(3, 4)
    assert assess(single, "ab") == assess(single.model_copy(update={"groups": []}), "ab")


def answers(seed: int) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(seed)
    group = np.sort(random.integers(0, 12, 150))
    label = random.integers(0, 4, 150)
    easy = random.random(12)[group]
    predicted = np.where(random.random(150) < easy, label, random.integers(0, 4, 150))
    confidence = random.uniform(0.25, 1, 150).astype(np.float32)
    return label, predicted, confidence, random.exponential(size=150), group


@pytest.mark.parametrize("seed", range(3))
def test_figures_have_the_jackknife_s_variance(seed):
    """By leaving one group after the other out of scikit-learn's metrics."""
    label, predicted, confidence, loss, group = answers(seed)
    tally = Tally.of(label, predicted, confidence, loss, 4, group=group)
    found = assess(tally, "abcd")
    sizes = np.bincount(group)
    sizes = sizes[sizes > 0]
    effective = sizes.sum() ** 2 / (sizes**2).sum()
    t = stats.t.ppf(0.975, effective - 1)

    def spread(figure, among=None):
        among = np.ones(150, bool) if among is None else among
        groups = np.unique(group[among])
        value = figure(among)
        without = np.array([figure(among & (group != g)) for g in groups])
        return value, (len(groups) - 1) / len(groups) * ((without - value) ** 2).sum()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figures = {
            "balanced_accuracy": lambda a: metrics.balanced_accuracy_score(label[a], predicted[a]),
            "macro_f1": lambda a: metrics.f1_score(label[a], predicted[a], average="macro"),
            "accuracy": lambda a: (label[a] == predicted[a]).mean(),
        }
        for name, figure in figures.items():
            value, variance = spread(figure)
            each = getattr(found, name)
            ends = wilson(value, min(value * (1 - value) / variance, 150), t)
            assert each.value == pytest.approx(value)
            assert (each.low, each.high) == pytest.approx(ends, rel=1e-9), name
    value, variance = spread(lambda a: loss[a].mean())
    assert found.log_loss.high == pytest.approx(value + t * np.sqrt(variance), rel=1e-6)
    for k, each in enumerate(found.classes):
        for estimate, among in ((each.recall, label == k), (each.precision, predicted == k)):
            value, variance = spread(lambda a: (label[a] == predicted[a]).mean(), among)
            sizes = np.unique(group[among], return_counts=True)[1]
            quantile = stats.t.ppf(0.975, sizes.sum() ** 2 / (sizes**2).sum() - 1)
            ends = wilson(value, min(value * (1 - value) / variance, sizes.sum()), quantile)
            assert (estimate.low, estimate.high) == pytest.approx(ends, rel=1e-9)
    assert accuracy_by_bin(tally).keys() == {i for i, row in enumerate(tally.bins()) if row[0]}


@pytest.mark.parametrize("alike", [0.1, 0.5])
@pytest.mark.parametrize("truth", [0.6, 0.85])
@pytest.mark.parametrize("groups", [6, 25])
def test_intervals_hold_the_truth(truth, alike, groups):
    """Beta-binomial images: `alike` is their correlation within a group, `truth` what is known."""
    random = np.random.default_rng(groups)
    held, plain, trials = 0, 0, 300
    ratio = (1 - alike) / alike
    for _ in range(trials):
        images = random.integers(5, 30, groups)
        right = random.binomial(images, random.beta(truth * ratio, (1 - truth) * ratio, groups))
        found = accuracy_of(counted(right.tolist(), images.tolist()))
        held += found.low <= truth <= found.high
        alone = proportion(int(right.sum()), int(images.sum()))
        plain += alone.low <= truth <= alone.high
    assert held / trials >= 0.9  # 0.95, less what six groups of which most are all right hide
    assert plain / trials < 0.85  # what images that count as independent come to
