"""What one pass over images counts: every figure of a classifier follows from it."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from jaxtyping import Float32, Int64
from numpy.typing import NDArray
from pydantic import Field, model_validator

from gradsurgery.documents.document import LARGEST, Part, check_lengths

BINS = 15
"""Of confidence, of equal width from 0 to 1; one more has what is exactly 1, as in torchmetrics."""

_Counts = Annotated[str, Field(pattern=r"^(\d{1,15}:\d{1,15}( \d{1,15}:\d{1,15})*)?$")]
_Bin = Annotated[str, Field(pattern=r"^\d{1,2} \d{1,15} \d{1,15} [\d.e+-]{1,30}$")]
_CELL = r"\d{1,9}>\d{1,9}@\d{1,2}:\d{1,15}"
_Group = Annotated[str, Field(pattern=rf"^{_CELL}( {_CELL})*$")]


def shown_order(classes: Sequence[str]) -> list[int]:
    """The positions of classes as they are shown: as they are, but numbers by their value.

    >>> shown_order(["1", "10", "2"]), shown_order(["dog", "cat"])
    ([0, 2, 1], [0, 1])
    """
    positions = list(range(len(classes)))
    if all(re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", name) for name in classes):
        positions.sort(key=lambda position: float(classes[position]))
    return positions


class Tally(Part):
    """Images by their class, the class predicted and the confidence in it.

    confusion: for each class, in their order, its images by the class predicted:
        "0:41 2:3" are 41 images taken for the first class and 3 for the third.
    calibration: for each bin of confidence that has images "bin images correct confidence": its
        number from 0, how many there are, how many of them are right, the mean confidence.
    log_loss, log_loss_deviation: mean and standard deviation of the images' cross-entropy (nats).
        None, as `calibration` is empty, where a prediction is not finite.
    groups: where images belong together, as those of a patient, the images of each group by class,
        class predicted and bin: "0>2@9:4" are 4 of the first class taken for the third, their
        confidence in bin 9. Empty where nothing is known of groups.
    group_losses: the mean cross-entropy of each group; empty where the log loss is None.

    >>> Tally(confusion=["0:41 2:3", "1:5", ""]).matrix().tolist()
    [[41, 0, 3], [0, 5, 0], [0, 0, 0]]
    """

    confusion: list[_Counts]
    calibration: list[_Bin] = []
    log_loss: float | None = None
    log_loss_deviation: float | None = None
    groups: list[_Group] = []
    group_losses: list[float] = []

    @classmethod
    def of(
        cls,
        label: Int64[np.ndarray, " images"],
        predicted: Int64[np.ndarray, " images"],
        confidence: Float32[np.ndarray, " images"],
        loss: NDArray[np.floating],
        classes: int,
        *,
        group: Int64[np.ndarray, " images"] | None = None,
    ) -> "Tally":
        """Count images.

        label, predicted: positions of classes, of which there are `classes`.
        confidence: the probability of the class predicted, from 0 to 1.
        loss: the cross-entropy of each image.
        group: a number for each, the same for those that belong together.
        """
        matrix = np.zeros((classes, classes), dtype=np.int64)
        np.add.at(matrix, (label, predicted), 1)
        tally = cls(confusion=_confusion(matrix))
        losses = loss.astype(np.float64)
        finite = bool(np.isfinite(confidence).all() and (np.abs(losses) <= LARGEST).all())
        if len(label) and finite:
            tally.calibration = _binned(confidence, label == predicted)
            tally.log_loss = float(losses.mean())
            tally.log_loss_deviation = float(losses.std())
        if group is not None:
            bins = _bin_of(confidence) if finite else np.zeros(len(label), np.int64)
            _, number, images = np.unique(group, return_inverse=True, return_counts=True)
            tally.groups = _grouped(number, label, predicted, bins)
            if finite:
                tally.group_losses = (np.bincount(number, weights=losses) / images).tolist()
        return tally

    @classmethod
    def merged(cls, tallies: Sequence["Tally"]) -> "Tally":
        """The tally of all the images of several with the same classes."""
        matrix = sum(tally.matrix() for tally in tallies)
        counted = [tally for tally in tallies if tally.images]
        whole = cls(confusion=_confusion(np.asarray(matrix)))
        if all(tally.groups for tally in counted):
            whole.groups = [group for tally in counted for group in tally.groups]
        if not counted or any(tally.log_loss is None for tally in counted):
            return whole
        bins = sum(tally.bins() for tally in counted)
        whole.calibration = _written(np.asarray(bins))
        weights = np.array([tally.images for tally in counted], dtype=np.float64)
        means = np.array([tally.log_loss for tally in counted], dtype=np.float64)
        spreads = np.array([tally.log_loss_deviation or 0.0 for tally in counted])
        mean = float(weights @ means / weights.sum())
        square = float(weights @ (spreads**2 + (means - mean) ** 2) / weights.sum())
        whole.log_loss, whole.log_loss_deviation = mean, math.sqrt(square)
        if whole.groups:
            whole.group_losses = [loss for tally in counted for loss in tally.group_losses]
        return whole

    def shown(
        self, classes: Sequence[str]
    ) -> tuple[list[str], Int64[np.ndarray, "classes classes"]]:
        """The classes and the matrix in `shown_order`."""
        order = shown_order(classes)
        return [classes[k] for k in order], self.matrix()[np.ix_(order, order)]

    def matrix(self) -> Int64[np.ndarray, "classes classes"]:
        """The confusion matrix: images by their class (row) and the class predicted (column)."""
        matrix = np.zeros((len(self.confusion), len(self.confusion)), dtype=np.int64)
        for label, row in enumerate(self.confusion):
            for pair in row.split():
                predicted, _, count = pair.partition(":")
                matrix[label, int(predicted)] = int(count)
        return matrix

    def bins(self) -> NDArray[np.float64]:
        """For each of the 16 bins: images, right ones among them, the sum of their confidence."""
        bins = np.zeros((BINS + 1, 3))
        for line in self.calibration:
            position, images, correct, confidence = line.split()
            bins[int(position)] = int(images), int(correct), int(images) * float(confidence)
        return bins

    def cells(self) -> Int64[np.ndarray, "cells 5"]:
        """A row for each entry of `groups`: the group's number, class, predicted, bin, images."""
        rows = [
            [number, *map(int, re.split("[>@:]", cell))]
            for number, group in enumerate(self.groups)
            for cell in group.split()
        ]
        return np.array(rows, dtype=np.int64).reshape(-1, 5)

    @property
    def in_groups(self) -> bool:
        """Whether some images belong together."""
        return 0 < len(self.groups) < self.images

    @property
    def images(self) -> int:
        """How many there are."""
        return self._counted()[0]

    @property
    def right(self) -> int:
        """How many are taken for what they are."""
        return self._counted()[1]

    @property
    def accuracy(self) -> float:
        """The fraction of the images that is right; NaN of none."""
        images, right = self._counted()
        return right / images if images else math.nan

    def check_fits(
        self, domain: str, classes: int, tested: int | None, accuracy: float | None
    ) -> None:
        """Raise `ValueError` where these are no tests of so many classes with that accuracy.

        tested: how many images were, where that is known.
        """
        if len(self.confusion) != classes:
            raise ValueError(f"tests of {domain} are of {len(self.confusion)} classes")
        images, right = self._counted()
        if images and tested not in (None, images):
            raise ValueError(f"tests of {domain} are of {images} images, its split's {tested}")
        found = math.nan if accuracy is None else accuracy
        if images and not math.isclose(right / images, found, abs_tol=1e-9):
            about = f"its tests are right on {right} of {images} images"
            raise ValueError(f"test_accuracy of {domain} is {accuracy}, and {about}")

    @model_validator(mode="after")
    def _is_of_its_classes(self) -> "Tally":
        classes = len(self.confusion)
        for pair in " ".join(self.confusion).split():
            if int(pair.partition(":")[0]) >= classes:
                raise ValueError(f"confusion has {pair!r}, expected a class below {classes}")
        for line in self.calibration:
            position, images, correct, confidence = line.split()
            sensible = int(position) <= BINS and int(correct) <= int(images)
            try:
                sensible = sensible and 0 <= float(confidence) <= 1
            except ValueError:
                sensible = False
            if not sensible:
                raise ValueError(
                    f"calibration has {line!r}, expected bin images correct confidence"
                )
        binned, counted = self.bins()[:, :2].sum(0).tolist(), self._counted()
        if self.calibration and tuple(binned) != counted:
            raise ValueError(
                f"calibration counts {binned[1]:.0f} of {binned[0]:.0f} images right, confusion "
                f"{counted[1]} of {counted[0]}"
            )
        self._check_groups()
        return self

    def _counted(self) -> tuple[int, int]:
        """How many images there are, and how many of them are right."""
        matrix = self.matrix()
        return int(matrix.sum()), int(matrix.trace())

    def _check_groups(self) -> None:
        """They hold the images of `confusion`, each once, and have a loss each or none."""
        if not self.groups and not self.group_losses:
            return
        found, matrix = self.cells(), self.matrix()
        counted = np.zeros_like(matrix)
        if found.size and max(found[:, 1].max(), found[:, 2].max()) < len(matrix):
            np.add.at(counted, (found[:, 1], found[:, 2]), found[:, 4])
        if not (counted == matrix).all() or found[:, 3].max(initial=0) > BINS:
            raise ValueError("groups do not have the images of confusion")
        if len(self.group_losses) not in (0, len(self.groups)):
            check_lengths(len(self.groups), ("group_losses", self.group_losses))


def check_counts(
    domains: Sequence[str],
    classes: Sequence[str],
    images: Mapping[str, int],
    by_class: Mapping[str, Sequence[int]],
) -> None:
    """Raise `ValueError` where names or the images' numbers of an image set contradict themselves.

    by_class: the images of each class, by domain; empty where they are not known.
    """
    for what, names in (("domains", domains), ("classes", classes)):
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{what} has {twice!r:.80} twice, expected each once")
    for domain, numbers in by_class.items():
        check_lengths(len(classes), (f"class_images of {domain}", [*numbers]))
    if {*images} != {*domains} or (by_class and {*by_class} != {*domains}):
        raise ValueError(f"images are counted of other domains than {', '.join(domains):.300}")
    for domain, numbers in by_class.items():
        if sum(numbers) != images[domain]:
            about = f"those of its classes {sum(numbers)}"
            raise ValueError(f"images of {domain} are {images[domain]}, and {about}")


def _confusion(matrix: NDArray[np.int64]) -> list[str]:
    return [
        " ".join(f"{column}:{row[column]}" for column in np.flatnonzero(row).tolist())
        for row in matrix
    ]


def _grouped(*columns: Int64[np.ndarray, " images"]) -> list[str]:
    """The entry of each group; columns: the group's number, class, predicted, bin of each image."""
    cells, counts = np.unique(np.stack(columns, axis=1), axis=0, return_counts=True)
    written: defaultdict[int, list[str]] = defaultdict(list)
    for (number, label, predicted, place), count in zip(
        cells.tolist(), counts.tolist(), strict=True
    ):
        written[number].append(f"{label}>{predicted}@{place}:{count}")
    return [" ".join(entries) for entries in written.values()]


def _bin_of(confidence: Float32[np.ndarray, " images"]) -> NDArray[np.int64]:
    edges = np.linspace(0, 1, BINS + 1, dtype=np.float32)
    return np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, BINS)


def _binned(confidence: Float32[np.ndarray, " images"], correct: NDArray[np.bool_]) -> list[str]:
    position = _bin_of(confidence)
    bins = np.zeros((BINS + 1, 3))
    for column, values in enumerate((np.ones(len(correct)), correct, confidence)):
        bins[:, column] = np.bincount(position, weights=values, minlength=BINS + 1)
    return _written(bins)


def _written(bins: NDArray[np.float64]) -> list[str]:
    return [
        f"{position} {images:.0f} {correct:.0f} {min(confidence / images, 1.0):.9g}"
        for position, (images, correct, confidence) in enumerate(bins.tolist())
        if images
    ]
