"""Figures of classifiers, by the definitions of scikit-learn, torchmetrics and scipy."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from sklearn import metrics

from gradsurgery.documents.tally import Tally
from gradsurgery.results.classification import as_good_as_one_class, assess
from gradsurgery.results.intervals import proportion


def answers(seed: int, classes: int, count: int, sharp: float):
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    labels[labels == classes - 1] = 0  # a class without images
    logits = sharp * random.normal(size=(count, classes)) - 9 * (np.arange(classes) == 1)
    logits[np.arange(count), labels] += random.choice([0, sharp], count)
    logits = torch.from_numpy(logits).float()
    return labels, logits, logits.softmax(1)


def tally_of(labels: np.ndarray, logits: torch.Tensor, probabilities: torch.Tensor) -> Tally:
    losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), reduction="none")
    best = logits.argmax(1).numpy()
    confidence = probabilities.amax(1).numpy()
    return Tally.of(labels, best, confidence, losses.numpy(), logits.shape[1])


@settings(max_examples=40)
@given(st.integers(0, 999), st.integers(2, 7), st.integers(1, 60), st.sampled_from([0.1, 2, 40]))
def test_figures_are_those_of_scikit_learn_and_torchmetrics(seed, classes, count, sharp):
    # two seconds, for whoever runs these tests and not for whoever collects them
    from torchmetrics.functional.classification import multiclass_calibration_error

    labels, logits, probabilities = answers(seed, classes, count, sharp)
    predicted = logits.argmax(1).numpy()
    found = assess(tally_of(labels, logits, probabilities), [str(k) for k in range(classes)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are never predicted
        report = metrics.classification_report(labels, predicted, output_dict=True)
        balanced = metrics.balanced_accuracy_score(labels, predicted)
        f1 = metrics.f1_score(labels, predicted, average="macro")
    assert found.accuracy.value == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert found.balanced_accuracy.value == pytest.approx(balanced)
    assert found.macro_f1.value == pytest.approx(f1)
    for each in found.classes:
        expected = report.get(each.name, {"recall": 0, "precision": 0, "f1-score": 0})
        assert (each.recall.value if each.recall else 0) == pytest.approx(expected["recall"])
        assert (each.precision.value if each.precision else 0) == pytest.approx(
            expected["precision"]
        )
        assert each.f1 == pytest.approx(expected["f1-score"])
        assert (each.recall is None) == (each.images == 0) == (int(each.name) not in labels)
    wanted = multiclass_calibration_error(probabilities, torch.from_numpy(labels), classes)
    assert found.calibration_error.value == pytest.approx(float(wanted), abs=1e-5)
    if sharp < 40:  # scikit-learn clips probabilities
        exact = logits.double().softmax(1).numpy()
        loss = metrics.log_loss(labels, exact, labels=range(classes))
        assert found.log_loss.value == pytest.approx(loss, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("right", "total"), [(0, 1), (3, 10), (10, 10), (500, 1000)])
def test_proportions_have_wilson_s_interval(right, total):
    z = 1.959963984540054
    p, n = right / total, total
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    found = proportion(right, total)
    assert (found.low, found.high) == pytest.approx((middle - reach, middle + reach), abs=1e-9)
    wanted = binomtest(right, total).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), rel=1e-14, abs=0)


@pytest.mark.parametrize(
    ("right", "images", "share"),
    [
        (14, [20, 10], 2 / 3),  # below
        (24, [20, 10], 2 / 3),  # above, by chance perhaps: p = 0.14, two-sided
        (26, [20, 10], None),  # p = 0.019
        (5, [5, 5], 0.5),
        (0, [0, 7, 0], None),  # nothing to tell apart
        (0, [], None),
    ],
)
def test_what_naming_one_class_comes_to(right, images, share):
    low = proportion(right, sum(images)).low if images else 0.0
    assert as_good_as_one_class(low, images) == share
    if len(images) == 2:  # the interval holds what the test without continuity does not refuse
        n, p = sum(images), max(images) / sum(images)
        z = (right / n - p) / np.sqrt(p * (1 - p) / n)
        assert (share is None) == (z > 1.959963984540054)


def test_intervals_of_the_bootstrap_are_those_over_the_images():
    """Against resampling the images one by one, 4,000 times."""
    labels, logits, probabilities = answers(3, 5, 300, 1.0)
    predicted = logits.argmax(1).numpy()
    confidence = probabilities.amax(1).numpy()
    found = assess(tally_of(labels, logits, probabilities), "abcde")
    random = np.random.default_rng(1)
    drawn: dict[str, list[float]] = {"balanced": [], "f1": [], "error": []}
    right = labels == predicted
    place = np.searchsorted(np.linspace(0, 1, 16), confidence, side="right")
    for _ in range(1000):
        chosen = random.integers(0, 300, 300)
        a, b = labels[chosen], predicted[chosen]
        recalls = [np.mean(b[a == k] == k) for k in np.unique(a)]
        drawn["balanced"].append(float(np.mean(recalls)))
        both = np.union1d(a, b)
        f1 = [2 * np.sum((a == k) & (b == k)) / np.sum((a == k) * 1 + (b == k)) for k in both]
        drawn["f1"].append(float(np.mean(f1)))
        gaps = np.bincount(place[chosen], right[chosen] - confidence[chosen])
        drawn["error"].append(float(np.abs(gaps).sum() / 300))
    for name, estimate in (
        ("balanced", found.balanced_accuracy),
        ("f1", found.macro_f1),
        ("error", found.calibration_error),
    ):
        low, high = np.percentile(drawn[name], [2.5, 97.5])
        assert estimate.low == pytest.approx(low, abs=0.012), name
        assert estimate.high == pytest.approx(high, abs=0.012), name


def test_a_class_with_images_that_is_never_predicted_is_named():
    found = assess(Tally(confusion=["0:5", "0:2 2:1", "2:4", ""]), ["a", "b", "c", "d"])
    assert found.never_predicted == ["b"]
    assert (found.log_loss, found.calibration_error) == (None, None)


def test_the_same_tally_has_the_same_intervals():
    tally = tally_of(*answers(5, 4, 50, 1.0))
    assert assess(tally, "abcd") == assess(tally, "abcd")


def test_images_that_are_all_right_have_no_interval_of_no_width():
    found = assess(Tally(confusion=["0:6", "1:4"]), "ab")
    wanted = binomtest(10, 10).proportion_ci(method="wilson")
    for each in (found.accuracy, found.balanced_accuracy, found.macro_f1):
        assert (each.value, each.high) == (1.0, 1.0)
        assert each.low == pytest.approx(wanted.low)


def test_a_log_loss_has_no_interval_below_zero():
    losses = np.array([0.01, 0.01, 3.0])  # mean 1.007, deviation 1.410: −0.588 to 2.602
    tally = Tally.of(np.zeros(3, int), np.zeros(3, int), np.ones(3, np.float32), losses, 2)
    found = assess(tally, "ab").log_loss
    reach = norm.ppf(0.975) * losses.std() / np.sqrt(3)
    assert (found.low, found.high) == (0.0, pytest.approx(losses.mean() + reach))
    assert reach > losses.mean()
