"""Sources made of another: the paper's data sets under their names, and classes in common."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from gradsurgery.data.source import SkippedImage, Source, bare_name
from gradsurgery.errors import DataError


@dataclass(frozen=True)
class Preset:
    """A data set of the paper, its domains with their numbers of images and their other names."""

    name: str
    images: Mapping[str, int]
    classes: tuple[str, ...]
    aliases: Mapping[str, str]
    hub: str | None

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains' canonical names."""
        return tuple(self.images)

    def domain(self, found: str) -> str | None:
        """The canonical name of a domain, None where the name is unknown."""
        names = {bare_name(name): name for name in self.domains} | dict(self.aliases)
        return names.get(bare_name(found))

    def label(self, found: str) -> str | None:
        """The canonical name of a class, None where the name is unknown."""
        return {bare_name(name): name for name in self.classes}.get(bare_name(found))


OFFICE_HOME_CLASSES = (
    "Alarm_Clock Backpack Batteries Bed Bike Bottle Bucket Calculator Calendar Candles Chair "
    "Clipboards Computer Couch Curtains Desk_Lamp Drill Eraser Exit_Sign Fan File_Cabinet "
    "Flipflops Flowers Folder Fork Glasses Hammer Helmet Kettle Keyboard Knives Lamp_Shade Laptop "
    "Marker Monitor Mop Mouse Mug Notebook Oven Pan Paper_Clip Pen Pencil Postit_Notes Printer "
    "Push_Pin Radio Refrigerator Ruler Scissors Screwdriver Shelf Sink Sneakers Soda Speaker Spoon "
    "TV Table Telephone ToothBrush Toys Trash_Can Webcam"
)

PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "pacs",
            {"art_painting": 2048, "cartoon": 2344, "photo": 1670, "sketch": 3929},
            ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person"),
            {"a": "art_painting", "art": "art_painting", "c": "cartoon", "p": "photo"}
            | {"s": "sketch", "cartoons": "cartoon", "photos": "photo", "sketches": "sketch"},
            "flwrlabs/pacs",
        ),
        Preset(
            "vlcs",
            {"Caltech101": 1415, "LabelMe": 2656, "SUN09": 3282, "VOC2007": 3376},
            ("bird", "car", "chair", "dog", "person"),
            {"c": "Caltech101", "caltech": "Caltech101", "l": "LabelMe", "s": "SUN09"}
            | {"sun": "SUN09", "v": "VOC2007", "voc": "VOC2007", "pascal": "VOC2007"}
            | {"pascalvoc": "VOC2007", "pascalvoc2007": "VOC2007"},
            None,
        ),
        Preset(
            "office-home",
            {"Art": 2427, "Clipart": 4365, "Product": 4439, "Real-World": 4357},
            tuple(OFFICE_HOME_CLASSES.split()),
            {"a": "Art", "ar": "Art", "c": "Clipart", "cl": "Clipart", "p": "Product"}
            | {"pr": "Product", "r": "Real-World", "rw": "Real-World", "real": "Real-World"},
            "flwrlabs/office-home",
        ),
    )
}


class DerivedSource(Source):
    """The images of `found` whose classes are among `class_order`, perhaps under other names.

    domains, classes: what each domain and each class of `found` is called.
    """

    fewest_domains = 1

    def __init__(
        self,
        found: Source,
        name: str,
        domains: Sequence[str],
        classes: Sequence[str],
        *,
        domain_order: Sequence[str],
        class_order: Sequence[str],
    ) -> None:
        self.found = found
        listing, chosen = found.listing, set(class_order)
        kept = [i for i in found.positions.tolist() if classes[listing.label[i]] in chosen]
        super().__init__(
            name,
            [domains[listing.domain[i]] for i in kept],
            [classes[listing.label[i]] for i in kept],
            [
                listing.identities[i].removeprefix(
                    f"{found.domains[listing.domain[i]]}/{found.classes[listing.label[i]]}/"
                )
                for i in kept
            ],
            domain_order=domain_order,
            class_order=class_order,
        )
        self.origins = [kept[row] for row in self.listing.rows.tolist()]
        """The position in the listing of `found` of each image."""
        self.left_out = found.left_out
        if found.parts is not None:
            self.parts = tuple(found.parts[i] for i in self.origins)
        if found.groups is not None:
            self.groups = tuple(found.groups[i] for i in self.origins)

    @override
    def encoded(self) -> Iterator[bytes]:
        wanted = frozenset(self.origins)
        return (content for _, content in self.found.contents(wanted))

    @override
    def contents(self, only: Collection[int] | None = None) -> Iterator[tuple[int, bytes]]:
        chosen = range(len(self.origins)) if only is None else only
        back = {self.origins[position]: position for position in chosen}
        return ((back[i], content) for i, content in self.found.contents(back))

    @override
    def signature(self) -> str | None:
        return self._told(self.found.signature())

    @override
    def place(self) -> str | None:
        return self._told(self.found.place())

    @override
    def location(self, position: int) -> str:
        return self.found.location(self.origins[position])

    def _told(self, text: str | None) -> str | None:
        """A text about `found`, with what is made of it; None where there is none."""
        return None if text is None else f"{self.name}/{text}"


class PresetSource(DerivedSource):
    """A data set of the paper under its canonical names, checked against the paper's numbers.

    As in the paper, images are first resized to 227x227.
    """

    resize_first = 227

    def __init__(self, preset: Preset, found: Source) -> None:
        super().__init__(
            found,
            preset.name,
            _rename(preset, "domain", found.domains),
            _rename(preset, "class", found.classes),
            domain_order=preset.domains,
            class_order=preset.classes,
        )
        for domain, expected, images in differing_counts(preset, self):
            raise DataError(
                f"{preset.name}: domain {domain} has {images} images, expected the paper's "
                f"{expected}; complete it, or give its path without '{preset.name}:' to use it as "
                "it is"
            )


def matching_preset(source: Source) -> Preset | None:
    """The preset whose domains and classes a source has, under whatever known names."""
    for preset in PRESETS.values():
        domains = {preset.domain(name) for name in source.domains}
        classes = {preset.label(name) for name in source.classes}
        if domains == set(preset.domains) and classes == set(preset.classes):
            return preset
    return None


def differing_counts(preset: Preset, source: Source) -> list[tuple[str, int, int]]:
    """The domains whose number of images is not the paper's, as (domain, expected, found)."""
    found: Counter[str | None] = Counter()
    for name, count in zip(source.domains, source.counts().sum(axis=1).tolist(), strict=True):
        found[preset.domain(name)] += count
    return [(d, n, found[d]) for d, n in preset.images.items() if found[d] != n]


def _rename(preset: Preset, kind: str, found: Sequence[str]) -> list[str]:
    """The canonical names of `found`, which must be all of the preset's and nothing else."""
    canonical = preset.domain if kind == "domain" else preset.label
    expected = preset.domains if kind == "domain" else preset.classes
    names = [canonical(name) for name in found]
    for name, known in zip(found, names, strict=True):
        if known is None:
            raise DataError(
                f"{preset.name}: unknown {kind} {name}, expected {', '.join(expected)}; rename or "
                f"remove it, or give its path without '{preset.name}:'"
            )
    for name in expected:
        if names.count(name) != 1:
            raise DataError(
                f"{preset.name}: found {names.count(name)} times the {kind} {name} among "
                f"{', '.join(found)}, expected it once; mend the data set, or give its path "
                f"without '{preset.name}:'"
            )
    return [name for name in names if name is not None]


class SelectedSource(DerivedSource):
    """The images of `found` whose classes are among `classes`, in that order.

    why: for every other class, why it is left out; it is listed in `left_out`.
    """

    def __init__(self, found: Source, classes: Sequence[str], why: dict[str, str]) -> None:
        super().__init__(
            found,
            found.name,
            found.domains,
            found.classes,
            domain_order=found.domains,
            class_order=classes,
        )
        left_out = [SkippedImage(f"class {label}", reason) for label, reason in why.items()]
        self.left_out = (*found.left_out, *left_out)
        self.resize_first = found.resize_first
        self.provenance = found.provenance

    @override
    def decode(self, position: int, content: bytes, size: int) -> NDArray[np.uint8]:
        return self.found.decode(self.origins[position], content, size)

    @override
    def _told(self, text: str | None) -> str | None:
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
    if isinstance(source, DerivedSource):
        yield from layers(source.found)


def innermost(source: Source) -> Source:
    """The last of a source's `layers`."""
    return list(layers(source))[-1]


def decoder_of(source: Source) -> str | None:
    """The method of its own that decodes the source's images, None for `decode_image`."""
    method = type(innermost(source)).decode
    return None if method is Source.decode else f"{method.__module__}.{method.__qualname__}"
