"""A decoded data set."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SkippedImage:
    """An image that could not be decoded and was left out, and why."""

    identity: str
    reason: str


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Decoded images of several domains, in the order of domain, class and identity.

    name: the data set's name.
    domains, classes: their names.
    images: uint8 [n, size, size, 3], RGB; read-only, memory-mapped.
    identities: n unique names "domain/class/file".
    domain, label: int64 [n], positions in `domains` and `classes`.
    size: side in pixels.
    digest: sha256 of everything the pixels and labels follow from, as hexadecimal digits.
    skipped: images left out because they could not be decoded.
    folder: where the cache keeps it; None for a set that is not from the cache.
    """

    name: str
    domains: tuple[str, ...]
    classes: tuple[str, ...]
    images: NDArray[np.uint8]
    identities: tuple[str, ...]
    domain: NDArray[np.int64]
    label: NDArray[np.int64]
    size: int
    digest: str
    skipped: tuple[SkippedImage, ...] = ()
    folder: Path | None = None

    def counts(self) -> NDArray[np.int64]:
        """Number of images of each domain (row) and class (column)."""
        counts = np.zeros((len(self.domains), len(self.classes)), dtype=np.int64)
        np.add.at(counts, (self.domain, self.label), 1)
        return counts
