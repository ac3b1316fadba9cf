"""The three data sets of the paper: their names, classes and numbers of images."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from typing_extensions import override

from gradsurgery.data.source import Source
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
        names = {_plain(name): name for name in self.domains} | dict(self.aliases)
        return names.get(_plain(found))

    def label(self, found: str) -> str | None:
        """The canonical name of a class, None where the name is unknown."""
        return {_plain(name): name for name in self.classes}.get(_plain(found))


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


class PresetSource(Source):
    """A data set of the paper under its canonical names, checked against the paper's numbers.

    As in the paper, images are first resized to 227x227.
    """

    resize_first = 227

    def __init__(self, preset: Preset, found: Source) -> None:
        self.found = found
        domains = _rename(preset, "domain", found.domains)
        classes = _rename(preset, "class", found.classes)
        listing, stored = found.listing, found.positions  # in the order in which they are stored
        prefixes = [
            f"{found.domains[domain]}/{found.classes[label]}/"
            for domain, label in zip(listing.domain, listing.label, strict=True)
        ]
        super().__init__(
            preset.name,
            [domains[listing.domain[i]] for i in stored],
            [classes[listing.label[i]] for i in stored],
            [listing.identities[i].removeprefix(prefixes[i]) for i in stored],
            domain_order=preset.domains,
            class_order=preset.classes,
        )
        self.left_out = found.left_out
        if found.parts is not None:
            self.parts = tuple(found.parts[stored[row]] for row in self.listing.rows)
        check_counts(preset, self)

    @override
    def encoded(self) -> Iterator[bytes]:
        return (content for _, content in self.found.contents())

    @override
    def signature(self) -> str | None:
        found = self.found.signature()
        return None if found is None else f"{self.name}/{found}"

    @override
    def place(self) -> str | None:
        found = self.found.place()
        return None if found is None else f"{self.name}/{found}"

    @override
    def location(self, position: int) -> str:
        return self.found.location(int(self.found.positions[self.listing.rows[position]]))


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
    found: dict[str, int] = dict.fromkeys(preset.domains, 0)
    for name, count in zip(source.domains, source.counts().sum(axis=1), strict=True):
        domain = preset.domain(name)
        if domain is not None:
            found[domain] += int(count)
    return [(d, n, found[d]) for d, n in preset.images.items() if found[d] != n]


def check_counts(preset: Preset, source: Source) -> None:
    """Raise `DataError` where a domain has not the paper's number of images."""
    for domain, expected, found in differing_counts(preset, source):
        raise DataError(
            f"{preset.name}: domain {domain} has {found} images, expected the paper's {expected}; "
            f"complete it, or give its path without '{preset.name}:' to use it as it is"
        )


def _plain(name: str) -> str:
    """A name's letters and digits: "Real World", "real_world" and "Real-World" are one."""
    return re.sub(r"[\W_]", "", name.casefold())


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
