"""What every source of images has in common: its listing, and the bytes of each image."""

import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradsurgery.documents.data_options import Resize
from gradsurgery.errors import ArgumentError, DataError, check_kind, printable


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


@dataclass(frozen=True)
class SkippedImage:
    """An image, or a file where an image was expected, that is not used, and why."""

    identity: str
    reason: str


def naming_left_out(error: DataError, left_out: Sequence[SkippedImage]) -> DataError:
    """The error with a word of what was left out, which may be the reason for it."""
    if not left_out:
        return error
    first = f"{left_out[0].identity} ({left_out[0].reason})"
    return DataError(f"{error}; left out: {len(left_out)}, the first {first}")


def as_seen(name: str) -> str:
    """What a name looks like: its characters put together as in NFC, its spaces as one."""
    return " ".join(unicodedata.normalize("NFC", name).split())


def bare_name(name: str) -> str:
    """Its letters and digits: "real_world" and "Real-World" are one; of a number, its value."""
    number = re.fullmatch("-?[0-9]+([.][0-9]+)?", name)
    return str(Fraction(name)) if number else re.sub(r"[\W_]", "", name.casefold())


def spelled_alike(names: Sequence[str]) -> list[str]:
    """What to say of names that differ in nothing but capitals, spaces and signs."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(bare_name(name), []).append(name)
    alike = [" and ".join(group) for key, group in groups.items() if key and len(group) > 1]
    return [f"{group} differ in spelling alone: if they are one, rename them" for group in alike]


def unknown_domain(source: str, name: str, domains: Sequence[str], purpose: str = "") -> str:
    """What to say of a domain that the data set `source` does not have.

    In the name of a folder copied from a Mac other characters may look the same.
    """
    said = f"{source} has no domain {name!r}{purpose}; its domains are {', '.join(domains)}"
    if alike := [each for each in domains if as_seen(each) == as_seen(name)]:
        other = f"written in other characters, {alike[0]!a}: rename it"
        said += f"; one that looks the same is {other}"
    return said


class Source(ABC):
    """A set of images of several domains over the same classes, not yet decoded.

    A source of your own lists its images for `__init__` and yields their bytes in `encoded`:

        class Photos(gs.Source):
            def __init__(self):
                self.paths = sorted(Path("photos").glob("*/*/*.jpg"))
                places = [(path.parts[-3], path.parts[-2], path.name) for path in self.paths]
                super().__init__("photos", *zip(*places))

            def encoded(self):
                return (path.read_bytes() for path in self.paths)

    name: the data set's name.
    domains_of, classes_of, files: the domain, the class and the name of each image, in the order in
        which they are stored. Characters that cannot be printed are replaced by escapes
        (`gradsurgery.errors.printable`).
    domain_order, class_order: all domains and classes, in their order; without one, the names found
        are sorted.

    Raises `DataError` for fewer than two domains, or two images of one name. A class that a domain
    lacks is refused when the images are decoded, unless `gaps` says otherwise.
    """

    fewest_domains = 2
    """A model that is trained needs two; one that is evaluated, one, and `open_source` is told."""

    resize_first: int | None = None
    """Side in pixels to which images are resized before they are resized to the network's size."""

    resize: Resize = "squash"
    """How an image that is not square becomes so (`gradsurgery.data.decode_image`)."""

    left_out: tuple[SkippedImage, ...] = ()
    """Files that lie among the images and are not read, and classes that are left out."""

    gaps: bool = False
    """Whether a domain may lack classes, as with `open_source(…, classes="all")`."""

    parts: tuple[str | None, ...] | None = None
    """Where the source says so, each image's part of a split, in the source's words."""

    groups: tuple[str | None, ...] | None = None
    """Where the source says so, what each image belongs to within its domain, as a patient: a
    split that is drawn divides no group."""

    reading: dict[str, Any] | None = None
    """How `open_source` was told to read it; None for a source that it has not opened."""

    provenance: dict[str, str | None] | None = None
    """Where the code of a source from another package comes from (`gradsurgery.doors`)."""

    def __init__(
        self,
        name: str,
        domains_of: Sequence[str],
        classes_of: Sequence[str],
        files: Sequence[str],
        *,
        domain_order: Sequence[str] | None = None,
        class_order: Sequence[str] | None = None,
    ) -> None:
        check_kind("name", name, str, "the data set's name")
        self.name = printable(name)
        self.listing = list_images(
            self.name,
            domains_of,
            classes_of,
            files,
            domain_order=domain_order,
            class_order=class_order,
            fewest_domains=self.fewest_domains,
        )
        self.domains, self.classes = self.listing.domains, self.listing.classes
        self.positions = np.argsort(self.listing.rows)
        """The position in the listing of each image, in storage order."""

    def counts(self) -> NDArray[np.int64]:
        """Number of images of each domain (row) and class (column)."""
        shape = len(self.domains), len(self.classes)
        return count_images(shape, self.listing.domain, self.listing.label)

    def check_complete(self, bad: Collection[int] = ()) -> None:
        """Raise `DataError` for a domain without images or, without `gaps`, a class it lacks.

        bad: positions of images that cannot be decoded, and do not count.
        """
        name = f"{self.name} without {len(bad)} bad images" if bad else self.name
        counts = self.counts()
        for i in bad:
            counts[self.listing.domain[i], self.listing.label[i]] -= 1
        wrong = ""
        if not counts.sum(axis=1).all():
            empty = self.domains[int(counts.sum(axis=1).argmin())]
            wrong = f"{name}: domain {empty} has no images; add some or remove it"
        elif not counts.all() and not self.gaps:
            missing = np.argwhere(counts == 0)
            domain, label = (int(i) for i in missing[0])
            more = f" (and {len(missing) - 1} more such gaps)" if len(missing) > 1 else ""
            more += "".join(f"; {sentence}" for sentence in spelled_alike(self.classes))
            wrong = (
                f"{name}: class {self.classes[label]} has no image in domain "
                f"{self.domains[domain]}, expected at least 1 image of each class in each domain"
                f"{more}; add images, or choose --classes common (without such classes) or all "
                "(with gaps)"
            )
        if wrong:
            raise naming_left_out(DataError(wrong), self.left_out)

    @abstractmethod
    def encoded(self) -> Iterable[bytes]:
        """Every image as the bytes of a file (PNG, JPEG, ...), in storage order.

        May be called several times, and gives the same bytes each time: decoded images are kept
        under the hash of these bytes. Raises `DataError` where the storage cannot be read: that is
        not a bad image to skip.
        """

    def contents(self, only: Collection[int] | None = None) -> Iterator[tuple[int, bytes]]:
        """Yield (position in the listing, encoded image) of every image, in storage order.

        only: positions of the images to yield, each once; where they are files, no other is read.
        """
        count, contents = 0, self.encoded()
        if not isinstance(contents, Iterable):
            raise DataError(
                f"{self.name}: `encoded` gives a {type(contents).__name__}; let it yield the bytes "
                "of each image file"
            )
        for content in contents:
            if count < len(self.positions):
                if not isinstance(content, bytes):
                    raise DataError(
                        f"{self.name}: image {count} is a {type(content).__name__}, expected the "
                        "bytes of an image file; let `encoded` yield bytes"
                    )
                position = int(self.positions[count])
                if only is None or position in only:
                    yield position, content
            count += 1
        if count != len(self.positions):
            raise DataError(
                f"{self.name} lists {len(self.positions)} images and yields {count}; let `encoded` "
                "yield one for each that is listed, in the same order"
            )

    def signature(self) -> str | None:
        """A text that changes whenever the images may have changed; cheap: reads no image.

        None where there is no such text, then every opening reads the encoded images.
        """
        return None

    def place(self) -> str | None:
        """A text for where the images lie and how they are read, whatever they are at the moment.

        Decoded images of what was there before make room for those of what is there now; None where
        both are kept.
        """
        return None

    def location(self, position: int) -> str:
        """Where the user finds the image: a path, or a file and a row."""
        return self.listing.identities[position]

    def decode(self, position: int, content: bytes, size: int) -> NDArray[np.uint8]:
        """The image at `position` as RGB, uint8 [size, size, 3].

        Overridden, it may read bytes of any kind. Decoded images are kept as long as the bytes and
        the module that the class is written in stay the same; whatever else it depends on belongs
        in the bytes. Raises `BadImageError` where the bytes are no whole image.
        """
        from gradsurgery.data.decode import decode_image

        return decode_image(content, size, self.resize_first, self.resize)


def list_images(
    name: str,
    domains_of: Sequence[str],
    classes_of: Sequence[str],
    files: Sequence[str],
    *,
    domain_order: Sequence[str] | None,
    class_order: Sequence[str] | None,
    fewest_domains: int,
) -> Listing:
    """Order the images of a source; see `Source` for the arguments and what is raised."""
    for what, names in (("domains_of", domains_of), ("classes_of", classes_of), ("files", files)):
        _check_texts(what, names)
    if not len(domains_of) == len(classes_of) == len(files):
        raise DataError(
            f"{name} lists {len(domains_of)} domains, {len(classes_of)} classes and {len(files)} "
            "files, expected one each for every image"
        )
    domains_of, classes_of = list(map(printable, domains_of)), list(map(printable, classes_of))
    domains = _names(name, "domain", domains_of, domain_order)
    classes = _names(name, "class", classes_of, class_order)
    check_domains(name, list(domains), fewest_domains)
    domain = np.array([domains[d] for d in domains_of], dtype=np.int64)
    label = np.array([classes[c] for c in classes_of], dtype=np.int64)
    named = zip(domains_of, classes_of, map(printable, files), strict=True)
    identities = ["/".join(names) for names in named]
    if len(set(identities)) < len(identities):
        twice = min(identity for identity, times in Counter(identities).items() if times > 1)
        raise DataError(f"{name}: two images are called {twice}; rename one of them")
    order = sorted(range(len(identities)), key=lambda i: (domain[i], label[i], identities[i]))
    rows = np.array(order, dtype=np.int64)
    ordered = tuple(identities[row] for row in order)
    return Listing(tuple(domains), tuple(classes), ordered, domain[rows], label[rows], rows)


def check_domains(name: str, domains: Sequence[str], fewest: int) -> None:
    """Raise `DataError` where the data set `name` has fewer domains."""
    if len(domains) < fewest:
        found = f"{len(domains)} {'domain' if len(domains) == 1 else 'domains'}"
        raise DataError(
            f"{name}: found {found} ({', '.join(domains) or 'none'}), expected at least 2"
            f"{' (1 to evaluate a model on)' if fewest == 1 else ''}; give each domain a folder of "
            "its own, or a name in the column 'domain'"
        )


def _check_texts(what: str, names: Any) -> None:
    is_array = isinstance(names, np.ndarray) or hasattr(names, "to_list")  # as of pandas
    if isinstance(names, str | bytes) or not (isinstance(names, Sequence) or is_array):
        raise ArgumentError(f"{what} are a list of names, found a {type(names).__name__}")
    for place, name in enumerate(names):
        check_kind(f"{what}[{place}]", name, str, "a name")


def _names(
    name: str, kind: str, found: Sequence[str], order: Sequence[str] | None
) -> dict[str, int]:
    """The position of each name."""
    if order is not None:
        _check_texts(f"{kind}_order", order)
    ordered = sorted(set(found)) if order is None else list(map(printable, order))
    positions = {text: i for i, text in enumerate(ordered)}
    if len(positions) < len(ordered):
        twice = next(text for text in ordered if ordered.count(text) > 1)
        raise DataError(f"{name}: two {kind} names read {twice!r}; rename one of them")
    if unknown := set(found) - set(positions):
        raise DataError(
            f"{name}: {kind} {min(unknown)} is not among those declared "
            f"({', '.join(ordered)}); declare it"
        )
    looks: dict[str, str] = {}
    for text in ordered:
        if (other := looks.setdefault(as_seen(text), text)) != text:
            raise DataError(
                f"{name}: the {kind} names {other!a} and {text!a} look the same and are written in "
                "other characters; rename one of them"
            )
    if "" in looks:
        raise DataError(f"{name}: a {kind} has an empty name; give it one")
    return positions


def count_images(shape: tuple[int, int], *of: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of images of each domain (row) and class (column); `of` are those of each image."""
    counts = np.zeros(shape, dtype=np.int64)
    np.add.at(counts, of, 1)
    return counts
