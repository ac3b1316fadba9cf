"""From what was counted to the figures of a classifier, each with its interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from gradsurgery.documents.tally import Tally
from gradsurgery.results.statistics import CONFIDENCE
from gradsurgery.seeds import derive_seed

RESAMPLES = 2000
INTERVALS = (
    "Intervals are of 95 %: Wilson's of accuracy, recall and precision; bootstrap percentiles over "
    "the images (2,000 resamples) of balanced accuracy, macro F1 and calibration error; the normal "
    "one of the log loss."
)

Matrix = NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """A figure and the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassFigures:
    """Of one class: recall is None without an image of it, precision where it is never predicted.

    images: of the class. predicted: taken for it.
    """

    name: str
    images: int
    predicted: int
    recall: Estimate | None
    precision: Estimate | None
    f1: float


@dataclass(frozen=True)
class Assessment:
    """The figures of a classifier on some images, by the definitions of scikit-learn.

    balanced_accuracy: mean recall of the classes that have images.
    macro_f1: mean F1 score of the classes that have images or are predicted.
    log_loss: mean cross-entropy, nats; calibration_error: the expected one, over 15 bins of equal
        width (L1, as torchmetrics' `MulticlassCalibrationError`). None where not known.
    """

    images: int
    accuracy: Estimate
    balanced_accuracy: Estimate
    macro_f1: Estimate
    log_loss: Estimate | None
    calibration_error: Estimate | None
    classes: list[ClassFigures]

    @property
    def never_predicted(self) -> list[str]:
        """The classes that have images and are never predicted."""
        return [each.name for each in self.classes if each.images and not each.predicted]


def assess(tally: Tally, classes: Sequence[str]) -> Assessment:
    """The figures that a tally of one image or more comes to.

    Its bootstrap draws from a seed of its own: the same tally gives the same intervals.

    >>> assess(Tally(confusion=["3:1", "1:4", "", ""]), "abcd").balanced_accuracy.value
    0.5
    """
    matrix = tally.matrix()
    random = np.random.default_rng(derive_seed(0, "bootstrap of a tally"))
    resampled = _resampled(matrix.reshape(-1), random).reshape(-1, *matrix.shape)
    return Assessment(
        images=tally.images,
        accuracy=proportion(tally.right, tally.images),
        balanced_accuracy=_estimate(_balanced_accuracy(matrix), _balanced_accuracy(resampled)),
        macro_f1=_estimate(_macro_f1(matrix), _macro_f1(resampled)),
        log_loss=_log_loss(tally),
        calibration_error=_calibration_error(tally, random),
        classes=[_class_figures(name, matrix, k) for k, name in enumerate(classes)],
    )


def proportion(right: int, total: int) -> Estimate:
    """A fraction with Wilson's interval (Wilson 1927), which holds for few images too.

    >>> found = proportion(9, 10)
    >>> found.value, round(found.low, 3), round(found.high, 3)
    (0.9, 0.596, 0.982)
    """
    z = _normal_quantile()
    middle = right + z**2 / 2
    reach = z * math.sqrt(right * (total - right) / total + z**2 / 4)
    low = 0.0 if right == 0 else (middle - reach) / (total + z**2)
    high = 1.0 if right == total else (middle + reach) / (total + z**2)
    return Estimate(right / total, low, high)


def as_good_as_one_class(right: int, images: Sequence[int]) -> float | None:
    """The share of the most frequent class where to name it always is as good; None elsewhere.

    As good: Wilson's interval of right / Σ images does not lie above it. None too where fewer than
    two classes have images, which nobody has to tell apart.

    right: images that are recognised. images: how many there are of each class.

    >>> as_good_as_one_class(18, [20, 10]), as_good_as_one_class(26, [20, 10])
    (0.6666666666666666, None)
    """
    if sum(count > 0 for count in images) < 2:
        return None
    share = max(images) / sum(images)
    return share if proportion(right, sum(images)).low <= share else None


def _normal_quantile() -> float:
    """How many standard deviations a confidence interval reaches to either side."""
    return NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


def _class_figures(name: str, matrix: Matrix, k: int) -> ClassFigures:
    right, images = int(matrix[k, k]), int(matrix[k].sum())
    predicted = int(matrix[:, k].sum())
    return ClassFigures(
        name,
        images,
        predicted,
        proportion(right, images) if images else None,
        proportion(right, predicted) if predicted else None,
        2 * right / (images + predicted) if images + predicted else 0.0,
    )


def _resampled(counts: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """Counts of as many images drawn anew, with replacement; only cells that have any vary."""
    cells = np.flatnonzero(counts)
    total = int(counts.sum())
    drawn = random.multinomial(total, counts[cells] / total, size=RESAMPLES)
    full = np.zeros((RESAMPLES, len(counts)), dtype=np.int64)
    full[:, cells] = drawn
    return full


def _balanced_accuracy(matrix: Matrix) -> NDArray[np.float64]:
    images = matrix.sum(axis=-1)
    recall = _diagonal(matrix) / np.maximum(images, 1)
    there = images > 0
    return np.asarray((recall * there).sum(axis=-1) / there.sum(axis=-1))


def _macro_f1(matrix: Matrix) -> NDArray[np.float64]:
    either = matrix.sum(axis=-1) + matrix.sum(axis=-2)
    f1 = 2 * _diagonal(matrix) / np.maximum(either, 1)
    return np.asarray(f1.sum(axis=-1) / (either > 0).sum(axis=-1))


def _diagonal(matrix: Matrix) -> Matrix:
    return np.diagonal(matrix, axis1=-2, axis2=-1)


def _log_loss(tally: Tally) -> Estimate | None:
    if tally.log_loss is None or tally.log_loss_deviation is None:
        return None
    reach = _normal_quantile() * tally.log_loss_deviation / math.sqrt(tally.images)
    return Estimate(tally.log_loss, tally.log_loss - reach, tally.log_loss + reach)


def _calibration_error(tally: Tally, random: np.random.Generator) -> Estimate | None:
    """In resamples every image has the mean confidence of its bin."""
    if not tally.calibration:
        return None
    images, correct, confidence = tally.bins().T
    mean = confidence / np.maximum(images, 1)

    def error(images: NDArray[np.float64], correct: NDArray[np.float64]) -> NDArray[np.float64]:
        gaps = np.abs(correct - images * mean).sum(axis=-1)
        return np.asarray(gaps / images.sum(axis=-1))

    cells = np.concatenate([correct, images - correct]).astype(np.int64)
    drawn = _resampled(cells, random).astype(np.float64)
    right, wrong = drawn[:, : len(images)], drawn[:, len(images) :]
    return _estimate(error(images, correct), error(right + wrong, right))


def _estimate(value: NDArray[np.float64], resampled: NDArray[np.float64]) -> Estimate:
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return Estimate(float(value), float(low), float(high))
