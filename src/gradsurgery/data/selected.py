"""A part of another source's images."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from gradsurgery.data.source import SkippedImage, Source


class SelectedSource(Source):
    """The images of `found` whose classes are among `classes`, in that order.

    why: for every other class, why it is left out; it is listed in `left_out`.
    """

    def __init__(self, found: Source, classes: Sequence[str], why: dict[str, str]) -> None:
        self.found = found
        listing = found.listing
        kept = [i for i in found.positions.tolist() if found.classes[listing.label[i]] in classes]
        places = [(found.domains[listing.domain[i]], found.classes[listing.label[i]]) for i in kept]
        super().__init__(
            found.name,
            [domain for domain, _ in places],
            [label for _, label in places],
            [
                listing.identities[i].removeprefix(f"{domain}/{label}/")
                for i, (domain, label) in zip(kept, places, strict=True)
            ],
            domain_order=found.domains,
            class_order=classes,
        )
        self._kept = kept
        self._wanted = frozenset(kept)
        if found.parts is not None:
            self.parts = tuple(found.parts[kept[row]] for row in self.listing.rows)
        left_out = [SkippedImage(f"class {label}", reason) for label, reason in why.items()]
        self.left_out = (*found.left_out, *left_out)
        self.resize_first = found.resize_first
        self.provenance = found.provenance

    @override
    def encoded(self) -> Iterable[bytes]:
        return self._encoded()

    def _encoded(self) -> Iterator[bytes]:
        for position, content in self.found.contents():
            if position in self._wanted:
                yield content

    @override
    def signature(self) -> str | None:
        return self._with_classes(self.found.signature())

    @override
    def place(self) -> str | None:
        return self._with_classes(self.found.place())

    @override
    def location(self, position: int) -> str:
        return self.found.location(self._origin(position))

    @override
    def decode(self, position: int, content: bytes, size: int) -> NDArray[np.uint8]:
        return self.found.decode(self._origin(position), content, size)

    def _origin(self, position: int) -> int:
        origin: int = self._kept[int(self.listing.rows[position])]
        return origin

    def _with_classes(self, text: str | None) -> str | None:
        return None if text is None else f"{text} of the classes {list(self.classes)}"


def with_common_classes(source: Source) -> Source:
    """The source without the classes that some domain lacks; itself where there are none."""
    counts = source.counts()
    why = {}
    for label, of_class in zip(source.classes, counts.T, strict=True):
        if lacking := [d for d, n in zip(source.domains, of_class, strict=True) if n == 0]:
            images = f"{of_class.sum()} image{'' if of_class.sum() == 1 else 's'}"
            why[label] = f"{images}, none in {', '.join(lacking)}"
    if not why:
        return source
    return SelectedSource(source, [label for label in source.classes if label not in why], why)


def layers(source: Source) -> Iterator[Source]:
    """The source, the one that it renames or selects from, and so on."""
    yield source
    if isinstance(found := getattr(source, "found", None), Source):
        yield from layers(found)


def plain(source: Source) -> Source:
    """The last of a source's `layers`."""
    return list(layers(source))[-1]


def draws_itself(source: Source) -> bool:
    """Whether the source decodes its images otherwise than `gradsurgery.data.decode_image`."""
    return type(plain(source)).decode is not Source.decode
