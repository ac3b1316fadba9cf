"""What every source of images has in common: its listing, and the bytes of each image."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradsurgery.errors import DataError


@dataclass(frozen=True)
class Listing:
    """The images of a source, ordered by domain, class and identity, whatever their storage order.

    `identities[i]` is "domain/class/file", `domain[i]` and `label[i]` are positions in `domains`
    and `classes`, `rows[i]` is the image's place in the order in which the source stores it.
    """

    domains: tuple[str, ...]
    classes: tuple[str, ...]
    identities: tuple[str, ...]
    domain: NDArray[np.int64]
    label: NDArray[np.int64]
    rows: NDArray[np.int64]


class Source(ABC):
    """A set of images of several domains over the same classes, not yet decoded."""

    resize_first: int | None = None
    """Side in pixels to which images are resized before they are resized to the network's size."""

    def __init__(self, name: str, listing: Listing) -> None:
        self.name = name
        self.listing = listing

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains' names."""
        return self.listing.domains

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names."""
        return self.listing.classes

    def counts(self) -> NDArray[np.int64]:
        """Number of images of each domain (row) and class (column)."""
        return count_images(self.listing)

    @abstractmethod
    def contents(self) -> Iterator[tuple[int, bytes]]:
        """Yield (position in the listing, encoded image) of every image, in storage order.

        Raises `DataError` where the storage cannot be read: that is not a bad image to skip.
        """

    @abstractmethod
    def signature(self) -> str | None:
        """A text that changes whenever the images may have changed; cheap: reads no image.

        None where there is no such text, then every opening reads the encoded images.
        """

    @abstractmethod
    def location(self, position: int) -> str:
        """Where the user finds the image: a path, or a file and a row."""

    def decode(self, position: int, content: bytes, size: int) -> NDArray[np.uint8]:
        """The image at `position` as RGB, uint8 [size, size, 3].

        Raises `BadImageError` where the bytes are no whole image.
        """
        from gradsurgery.data.decode import decode_image

        return decode_image(content, size, self.resize_first)


def list_images(
    name: str,
    domains: Sequence[str],
    classes: Sequence[str],
    files: Sequence[str],
    *,
    domain_order: Sequence[str] | None = None,
    class_order: Sequence[str] | None = None,
) -> Listing:
    """Order the images that a source stores as rows of (domain, class, file).

    Without `domain_order` or `class_order` the names found are sorted.
    Raises `DataError` for fewer than two domains, a domain without images, or a class that a
    domain lacks: a network trained with that domain left out is tested on every class.
    """
    domain_names = tuple(domain_order if domain_order is not None else sorted(set(domains)))
    class_names = tuple(class_order if class_order is not None else sorted(set(classes)))
    if len(domain_names) < 2:
        raise DataError(
            f"{name}: found {len(domain_names)} domains ({', '.join(domain_names) or 'none'}), "
            "expected at least 2; give each domain a folder of its own, or a name in the column "
            "'domain'"
        )
    domain_position = {domain: i for i, domain in enumerate(domain_names)}
    class_position = {label: i for i, label in enumerate(class_names)}
    domain = np.array([domain_position[d] for d in domains], dtype=np.int64)
    label = np.array([class_position[c] for c in classes], dtype=np.int64)
    identities = [f"{d}/{c}/{file}" for d, c, file in zip(domains, classes, files, strict=True)]
    if len(set(identities)) < len(identities):
        twice = next(i for i in sorted(identities) if identities.count(i) > 1)
        raise DataError(f"{name}: two images are called {twice}; rename one of them")
    rows = np.array(
        sorted(range(len(identities)), key=lambda i: (domain[i], label[i], identities[i])),
        dtype=np.int64,
    )
    listing = Listing(
        domain_names,
        class_names,
        tuple(identities[row] for row in rows),
        domain[rows],
        label[rows],
        rows,
    )
    check_complete(name, listing)
    return listing


def count_images(listing: Listing) -> NDArray[np.int64]:
    """Number of images of each domain (row) and class (column)."""
    counts = np.zeros((len(listing.domains), len(listing.classes)), dtype=np.int64)
    np.add.at(counts, (listing.domain, listing.label), 1)
    return counts


def select(listing: Listing, positions: Sequence[int]) -> Listing:
    """The listing of some of the images."""
    chosen = np.array(positions, dtype=np.int64)
    return Listing(
        listing.domains,
        listing.classes,
        tuple(listing.identities[i] for i in positions),
        listing.domain[chosen],
        listing.label[chosen],
        listing.rows[chosen],
    )


def check_complete(name: str, listing: Listing) -> None:
    """Raise `DataError` for a domain without images or a class that a domain lacks."""
    counts = count_images(listing)
    for domain, found in zip(listing.domains, counts.sum(axis=1), strict=True):
        if found == 0:
            raise DataError(f"{name}: domain {domain} has no images; add some or remove it")
    missing = np.argwhere(counts == 0)
    if len(missing):
        domain, label = missing[0]
        more = f" (and {len(missing) - 1} more such gaps)" if len(missing) > 1 else ""
        raise DataError(
            f"{name}: class {listing.classes[label]} has no image in domain "
            f"{listing.domains[domain]}, expected at least 1 image of each class in each "
            f"domain{more}; add images or remove the class from every domain"
        )
