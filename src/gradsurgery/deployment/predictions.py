"""What a model says of pictures."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from gradsurgery.data import SkippedImage
from gradsurgery.errors import check_kind


@dataclass(frozen=True, eq=False)
class Predictions:
    """Probabilities of the classes, a row a picture, in the order in which they were given.

    classes: the model's, in the order of the columns.
    names: what the pictures are called: paths, or "image 0" of those in memory.
    probabilities: each from 0 to 1, those of a picture sum up to 1.
    skipped: the pictures that could not be decoded, and why.
    """

    classes: tuple[str, ...]
    names: list[str]
    probabilities: Float64[np.ndarray, "pictures classes"]
    skipped: tuple[SkippedImage, ...] = ()

    @property
    def labels(self) -> list[str]:
        """The most probable class of each picture."""
        return [self.classes[i] for i in self.probabilities.argmax(axis=1)]

    def top(self, count: int) -> list[list[tuple[str, float]]]:
        """The `count` most probable classes of each picture with their probabilities."""
        check_kind("count", count, int, "a whole number of classes")
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :count]
        return [
            [(self.classes[i], float(row[i])) for i in best]
            for row, best in zip(self.probabilities, order, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.names)


def joined(classes: tuple[str, ...], parts: Iterable[Predictions]) -> Predictions:
    """The predictions of several batches as one."""
    names: list[str] = []
    skipped: list[SkippedImage] = []
    rows = [np.empty((0, len(classes)), np.float64)]
    for part in parts:
        names += part.names
        skipped += part.skipped
        rows.append(part.probabilities)
    return Predictions(classes, names, np.concatenate(rows), tuple(skipped))
