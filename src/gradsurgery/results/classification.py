"""From what was counted to the figures of a classifier, each with its interval."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gradsurgery.documents.tally import BINS, Tally, shown_order
from gradsurgery.errors import ArgumentError
from gradsurgery.results.intervals import (
    Counts,
    Estimate,
    Groups,
    Values,
    normal_quantile,
    paired_difference,
    proportion,
)
from gradsurgery.results.statistics import CONFIDENCE
from gradsurgery.seeds import derive_seed

RESAMPLES = 2000
INTERVALS = (
    "Intervals are of 95 %: Wilson's of accuracy, recall and precision; bootstrap percentiles over "
    "the images (2,000 resamples) of balanced accuracy, macro F1 and calibration error; the normal "
    "one of the log loss."
)
INTERVALS_OF_GROUPS = (
    "Intervals are of 95 % and take groups of images, not images, for independent: Wilson's on the "
    "effective number of images (Rao & Scott 1992) of accuracy, recall, precision, balanced "
    "accuracy and macro F1; Student's of calibration error and log loss. Variances are the "
    "jackknife's, which leaves out one group after another; degrees of freedom follow from how "
    "many groups there are and how uneven they are."
)

INTERVALS_OF_PAIRS = (
    "Right alone: how many images only it has right / only the other. Intervals of differences are "
    "of 95 %: Bonett & Price's (2012) of answers to the same images, of images in groups on their "
    "effective number. Each is taken alone: of 20 domains without a difference, one looks better "
    "or worse by chance."
)


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

    Its bootstrap draws from a seed of its own: the same tally gives the same intervals. Where
    images belong to groups, nothing is drawn: see `Groups`.

    >>> assess(Tally(confusion=["3:1", "1:4", "", ""]), "abcd").balanced_accuracy.value
    0.5
    """
    matrix, groups = tally.matrix(), Groups.of(tally)
    if groups is None:
        random = np.random.default_rng(derive_seed(0, "bootstrap of a tally"))
        sums, resampled = _Sums.of(matrix), _resampled_sums(matrix, random)
        n = tally.images
        balanced = _estimate(sums.balanced_accuracy(), resampled.balanced_accuracy(), n)
        macro_f1 = _estimate(sums.macro_f1(), resampled.macro_f1(), n)
        log_loss, calibration = _log_loss(tally), _calibration_error(tally, random)
    else:
        balanced = _of_groups(groups, matrix, _Sums.balanced_accuracy)
        macro_f1 = _of_groups(groups, matrix, _Sums.macro_f1)
        log_loss = _log_loss_of_groups(tally, groups)
        calibration = _calibration_error_of_groups(tally, groups)
    return Assessment(
        images=tally.images,
        accuracy=accuracy_of(tally),
        balanced_accuracy=balanced,
        macro_f1=macro_f1,
        log_loss=log_loss,
        calibration_error=calibration,
        classes=[_class_figures(classes[k], matrix, k, groups) for k in shown_order(classes)],
    )


def accuracy_of(tally: Tally) -> Estimate:
    """The fraction of a tally's images that is right."""
    if (groups := Groups.of(tally)) is not None:
        return groups.proportion(groups.right, groups.right | ~groups.right)
    return proportion(int(tally.matrix().trace()), tally.images)


def accuracy_by_bin(tally: Tally) -> dict[int, Estimate]:
    """The same of the images in each bin of confidence that has any."""
    bins = {b: (int(r), int(n)) for b, (n, r, _) in enumerate(tally.bins()) if n}
    if (groups := Groups.of(tally)) is not None:
        return {b: groups.proportion(groups.right, groups.bin == b) for b in bins}
    return {b: proportion(right, images) for b, (right, images) in bins.items()}


def as_good_as_one_class(low: float, images: Sequence[int]) -> float | None:
    """The share of the most frequent class where to name it always is as good; None elsewhere.

    As good: the interval of the accuracy, which begins at `low`, does not lie above it. None too
    where fewer than two classes have images, which nobody has to tell apart.

    images: how many there are of each class.

    >>> as_good_as_one_class(proportion(18, 30).low, [20, 10])
    0.6666666666666666
    >>> as_good_as_one_class(proportion(26, 30).low, [20, 10])
    """
    if sum(count > 0 for count in images) < 2:
        return None
    share = max(images) / sum(images)
    return share if low <= share else None


@dataclass(frozen=True)
class PairedFigures:
    """A model and another one on the same images.

    accuracy, other: the fractions that are right. difference: the first less the second.
    only_this, only_other: how many images one of the two alone has right.
    """

    images: int
    accuracy: float
    other: float
    difference: Estimate
    only_this: int
    only_other: int

    @property
    def verdict(self) -> Literal["better", "worse", "not told apart"]:
        """Of the model, by whether the difference's interval lies on one side of 0."""
        if self.difference.low > 0:
            return "better"
        return "worse" if self.difference.high < 0 else "not told apart"


def compare_answers(paired: Tally) -> PairedFigures:
    """The figures of two models on the same images, as `evaluate_model` counts them.

    paired: whether the other model has an image right (the row: 0 no, 1 yes), and this one; raises
        `ArgumentError` where there is no image.

    >>> found = compare_answers(Tally(confusion=["0:80 1:16", "0:6 1:59"]))
    >>> found.only_this, found.only_other, found.verdict
    (16, 6, 'better')
    """
    if not paired.images:
        raise ArgumentError("two models are compared on images that are new to both, found none")
    (_, this), (other, both) = paired.matrix().tolist()
    return PairedFigures(
        images=paired.images,
        accuracy=(both + this) / paired.images,
        other=(both + other) / paired.images,
        difference=paired_difference(paired),
        only_this=this,
        only_other=other,
    )


@dataclass(frozen=True)
class _Sums:
    """Of each class: answers that are right, images, and predictions; [classes, samples]."""

    right: Counts
    images: Counts
    predicted: Counts

    @classmethod
    def of(cls, matrix: Counts) -> "_Sums":
        """Those of a confusion matrix, one sample."""
        columns = (matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0))
        return cls(*(column[:, None] for column in columns))

    @classmethod
    def added(
        cls, classes: int, samples: int, cells: Iterable[tuple[int, int, Any, Any]]
    ) -> "_Sums":
        """Those of cells (class, predicted, samples, images)."""
        sums = cls(*(np.zeros((classes, samples), dtype=np.int64) for _ in range(3)))
        for label, predicted, sample, images in cells:
            sums.images[label, sample] += images
            sums.predicted[predicted, sample] += images
            if label == predicted:
                sums.right[label, sample] += images
        return sums

    def without(self, others: "_Sums") -> "_Sums":
        """What is left without each of the samples of the others."""
        mine, theirs = vars(self).values(), vars(others).values()
        return _Sums(*(a - b for a, b in zip(mine, theirs, strict=True)))

    def balanced_accuracy(self) -> Values:
        there = self.images > 0
        recall = self.right / np.maximum(self.images, 1)
        return np.asarray((recall * there).sum(axis=0) / there.sum(axis=0))

    def macro_f1(self) -> Values:
        either = self.images + self.predicted
        f1 = 2 * self.right / np.maximum(either, 1)
        return np.asarray(f1.sum(axis=0) / (either > 0).sum(axis=0))


def _class_figures(name: str, matrix: Counts, k: int, groups: Groups | None) -> ClassFigures:
    right, images, predicted = int(matrix[k, k]), int(matrix[k].sum()), int(matrix[:, k].sum())
    recall = proportion(right, images) if images else None
    precision = proportion(right, predicted) if predicted else None
    if groups is not None:
        recall = recall and groups.proportion(groups.right, groups.label == k)
        precision = precision and groups.proportion(groups.right, groups.predicted == k)
    f1 = 2 * right / (images + predicted) if images + predicted else 0.0
    return ClassFigures(name, images, predicted, recall, precision, f1)


def _resampled_sums(matrix: Counts, random: np.random.Generator) -> _Sums:
    """Of as many images drawn anew, with replacement."""
    labels, predicted = np.nonzero(matrix)
    drawn = np.ascontiguousarray(_resampled(matrix[labels, predicted], random).T)
    every = [slice(None)] * len(drawn)
    cells = zip(labels.tolist(), predicted.tolist(), every, drawn, strict=True)
    return _Sums.added(len(matrix), RESAMPLES, cells)


def _resampled(counts: Counts, random: np.random.Generator) -> Counts:
    """Counts of as many images drawn anew, with replacement; cells without any stay so."""
    cells = np.flatnonzero(counts)
    total = int(counts.sum())
    drawn = random.multinomial(total, counts[cells] / total, size=RESAMPLES)
    full = np.zeros((RESAMPLES, len(counts)), dtype=np.int64)
    full[:, cells] = drawn
    return full


def _log_loss(tally: Tally) -> Estimate | None:
    if tally.log_loss is None or tally.log_loss_deviation is None:
        return None
    reach = normal_quantile() * tally.log_loss_deviation / math.sqrt(tally.images)
    return Estimate(tally.log_loss, max(0.0, tally.log_loss - reach), tally.log_loss + reach)


def _calibration_error(tally: Tally, random: np.random.Generator) -> Estimate | None:
    """In resamples every image has the mean confidence of its bin."""
    if not tally.calibration:
        return None
    images, correct, confidence = tally.bins().T
    mean = confidence / np.maximum(images, 1)
    cells = np.concatenate([correct, images - correct]).astype(np.int64)
    drawn = _resampled(cells, random).astype(np.float64)
    right, wrong = drawn[:, : len(images)], drawn[:, len(images) :]
    return _estimate(_gap(images, correct, mean), _gap(right + wrong, right, mean))


def _of_groups(groups: Groups, matrix: Counts, figure: Callable[["_Sums"], Values]) -> Estimate:
    whole, classes, count = _Sums.of(matrix), len(matrix), len(groups.images)
    without, step = np.full(count, np.nan), max(1, 2**20 // classes)  # at a time: bounds memory
    for start in range(0, count, step) if count > 1 else ():
        here = (groups.group >= start) & (groups.group < start + step)
        columns = (groups.label, groups.predicted, groups.group - start, groups.count)
        cells = zip(*(column[here].tolist() for column in columns), strict=True)
        part = _Sums.added(classes, min(step, count - start), cells)
        without[start : start + step] = figure(whole.without(part))
    return groups.bounded(float(figure(whole)[0]), without)


def _log_loss_of_groups(tally: Tally, groups: Groups) -> Estimate | None:
    if tally.log_loss is None:
        return None
    losses, images = np.array(tally.group_losses) * groups.images, groups.images
    without = (losses.sum() - losses) / np.maximum(images.sum() - images, 1)
    return groups.symmetric(tally.log_loss, without, math.inf)


def _calibration_error_of_groups(tally: Tally, groups: Groups) -> Estimate | None:
    """Without a group, every image still has the mean confidence of its bin."""
    if not tally.calibration:
        return None
    counts = np.zeros((2, len(groups.images), BINS + 1))
    for each, chosen in zip(counts, (groups.count, groups.count * groups.right), strict=True):
        np.add.at(each, (groups.group, groups.bin), chosen)
    (images, correct), (n, right, confidence) = counts, tally.bins().T
    mean = confidence / np.maximum(n, 1)
    value = float(_gap(n, right, mean))
    return groups.symmetric(value, _gap(n - images, right - correct, mean), 1.0)


def _gap(images: Values, correct: Values, mean: Values) -> Values:
    """The calibration error of bins with so many images and a mean confidence each."""
    gaps = np.abs(correct - images * mean).sum(axis=-1)
    return np.asarray(gaps / np.maximum(images.sum(axis=-1), 1))


def _estimate(value: Values, resampled: Values, images: int = 0) -> Estimate:
    """With percentiles; of `images` that are all right or all wrong, which no resampling changes,
    with the interval of their fraction.
    """
    found = float(np.squeeze(value))
    if images and found in (0.0, 1.0):
        return proportion(round(found * images), images)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return Estimate(found, float(low), float(high))
