"""Every domain's images, divided into training, validation and test images: drawn, or as told."""

import hashlib
import itertools
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradsurgery.atomic import expanded
from gradsurgery.data.groups import PARTS, cells_of, check_undivided, grouped_parts, part_sizes
from gradsurgery.data.image_set import ImageSet
from gradsurgery.documents.data_options import DataOptions, percentages
from gradsurgery.documents.record import SplitFile
from gradsurgery.errors import ArgumentError, DataError, printable
from gradsurgery.seeds import random_order

Indices = NDArray[np.int64]
Parts = Sequence[str | None]
_NAMES = {
    **{part: part for part in PARTS},
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "crossval": "validation",
    "testing": "test",
}


@dataclass(frozen=True, eq=False)
class Split:
    """Which images of each domain are for training, validation and test.

    train, validation, test: per domain, positions in the image set, in the order of identities.
    digest: sha256 of the identities in every part; where all images of a target are tested on, of
        the split without that, which all targets share.
    seed: what the split was drawn from.
    identities: of the images in every part of every domain.
    unused: identities of images in no part.
    """

    train: dict[str, Indices]
    validation: dict[str, Indices]
    test: dict[str, Indices]
    digest: str
    seed: int
    identities: dict[str, dict[str, list[str]]]
    unused: tuple[str, ...] = ()

    def sizes(self) -> dict[str, dict[str, int]]:
        """Number of images of each domain and part."""
        return {
            domain: {part: len(names) for part, names in parts.items()}
            for domain, parts in self.identities.items()
        }

    def save(self, folder: Path, hashes: Sequence[str] = ()) -> None:
        """Write `split.json`, with the identities of the images, into `folder`.

        hashes: of all files of the image set, by which training images are known anywhere.
        """
        file = SplitFile(seed=self.seed, digest=self.digest, domains=self.identities)
        if hashes:
            file.files = {d: [file_mark(hashes[i]) for i in of] for d, of in self.train.items()}
        file.save(folder)


def file_mark(digest: str) -> str:
    """As much of a file's sha256 as tells it from a data set's others."""
    return digest[:16]


def draw_split(
    images: ImageSet,
    seed: int = 0,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    *,
    without: Collection[int] = (),
) -> Split:
    """Divide every domain's images at random, stratified by class.

    fractions: of training, validation and test images; they sum to 1.
    without: positions of images that are in no part.

    Each class of each domain is divided by the method of the largest remainder (see
    `part_sizes`), with a generator of its own: a domain's split depends neither on the other
    domains nor on the order in which images are listed. Where images belong to groups, none of
    which is divided, the parts come as near to these sizes as `grouped_parts` finds them.
    """
    exact = check_fractions(fractions)
    if images.groups is not None:
        return as_split(images, grouped_parts(images, seed, exact, frozenset(without)), seed)
    parts: list[str | None] = [None] * len(images.identities)
    for (d, c), members in cells_of(images, frozenset(without)).items():
        drawn = random_order(len(members), seed, "split", images.domains[d], images.classes[c])
        order = iter(drawn.tolist())
        for part, size in zip(PARTS, part_sizes(len(members), exact), strict=True):
            for i in itertools.islice(order, size):
                parts[members[i]] = part
    return as_split(images, parts, seed)


def as_split(images: ImageSet, parts: Sequence[str | None], seed: int = 0) -> Split:
    """The split that has each image in the part of its name; None stands for none of them."""
    domain_of = images.domain.tolist()
    ordered = sorted(range(len(parts)), key=images.identities.__getitem__)
    chosen: defaultdict[tuple[str | None, int], list[int]] = defaultdict(list)
    for i in ordered:
        chosen[parts[i], domain_of[i]].append(i)
    indices: dict[str, dict[str, Indices]] = {
        part: {name: np.array(chosen[part, d], np.int64) for d, name in enumerate(images.domains)}
        for part in PARTS
    }
    identities = {
        domain: {part: [images.identities[i] for i in indices[part][domain]] for part in PARTS}
        for domain in images.domains
    }
    unused = tuple(images.identities[i] for i in ordered if parts[i] is None)
    digest = hashlib.sha256(json.dumps(identities, sort_keys=True).encode()).hexdigest()
    return Split(**indices, digest=digest, seed=seed, identities=identities, unused=unused)


def check_fractions(fractions: Sequence[float]) -> tuple[Fraction, ...]:
    """The fractions as exact numbers; `ArgumentError` where they divide nothing."""
    if (
        len(fractions) != 3
        or not all(math.isfinite(f) and f >= 0 for f in fractions)
        or fractions[0] <= 0
        or abs(sum(fractions) - 1) > 1e-9
    ):
        raise ArgumentError(
            f"fractions are {tuple(fractions)}, expected three (training above 0, "
            "validation, test) that are not negative and sum to 1, as (0.7, 0.1, 0.2)"
        )
    exact = [Fraction(f).limit_denominator(10**9) for f in fractions]
    return tuple(f / sum(exact) for f in exact)


def part_name(text: str, where: str) -> str:
    """The part that `text` means; raises `DataError` for what is none."""
    if part := _NAMES.get(text.strip().lower()):
        return part
    raise DataError(
        f"{where}: the split is {text!r:.60}, expected train, validation (val) or test; mend it"
    )


def parts_in(name: str) -> set[str]:
    """The parts that the words of a file's or folder's name mean.

    >>> parts_in("photo_crossval_kfold"), parts_in("0000")
    ({'validation'}, set())
    """
    words = re.split(r"[\W_]+", name.lower())
    return {_NAMES[word] for word in words if word in _NAMES}


def called_as_parts(domains: Sequence[str]) -> list[str]:
    """What to say of domains that seem to be the parts of one set of images."""
    called = [domain for domain in domains if parts_in(domain)]
    if len(set().union(*map(parts_in, called))) < 2:
        return []
    return [f"{', '.join(called)} are called as parts of a split, which are no domains"]


def split_of(options: DataOptions, images: ImageSet, seed: int) -> Split:
    """The split of `images` for a run with the options `split`, `test_on` and `target`.

    seed: what the split is drawn from, where it is drawn.

    With `test_on` "all" every image of the target is a test image, whatever part it is in.
    """
    from gradsurgery.data.duplicates import dropped

    check_split(options)
    without = dropped(images) if options.drop_duplicates else frozenset()
    drawn = percentages(options.split)
    if drawn is not None:
        fractions = tuple(percent / 100 for percent in drawn)
        split = draw_split(images, seed, fractions, without=without)
    else:
        found = _column(images) if options.split == "column" else _listed(images, options.split)
        parts = [None if i in without else part for i, part in enumerate(found)]
        check_undivided(images, parts)
        split = as_split(images, parts, seed)
    if options.test_on == "all" and options.target in images.domains:
        split = _with_all_tested(split, images, options.target, without)
    return split


def check_split(options: DataOptions) -> None:
    """Raise `ArgumentError` for a split that is of no known kind, before an image is read."""
    place = options.split
    if percentages(place) is not None:
        return
    if options.split_per_run:
        raise ArgumentError(
            f"the split {place:.200} is the same for every run; leave --split-per-run out"
        )
    path = expanded(place)
    # Path's own raise for a name that is too long
    is_file, is_folder = os.path.isfile(path), os.path.isdir(path)  # noqa: PTH112, PTH113
    is_there = is_folder or (is_file and path.suffix == ".json")
    if place != "column" and not is_there:
        raise ArgumentError(
            f"the split {place:.200} is no percentages (70/10/20), not the word column, and no "
            "folder of lists or split.json; give one of them"
        )


def _with_all_tested(split: Split, images: ImageSet, target: str, without: frozenset[int]) -> Split:
    of_target = np.flatnonzero(images.domain == images.domains.index(target)).tolist()
    chosen = sorted(set(of_target) - without, key=images.identities.__getitem__)
    test = {**split.test, target: np.array(chosen, dtype=np.int64)}
    identities = [images.identities[i] for i in chosen]
    named = {**split.identities, target: {**split.identities[target], "test": identities}}
    return replace(split, test=test, identities=named)


def _column(images: ImageSet) -> Parts:
    if images.parts is None:
        raise ArgumentError(
            f"{images.name} has no column split, nor Parquet files called train, validation and "
            "test; give percentages, as 70/10/20, or lists of files"
        )
    return [
        part_name(said, f"{images.name}, {identity}") if said else None
        for said, identity in zip(images.parts, images.identities, strict=True)
    ]


def _listed(images: ImageSet, place: str) -> Parts:
    """The parts that a `split.json` gives the images, or a folder of lists of their files.

    Each list is a text file with one of the words train, val, crossval, test, … in its name, as
    "train.txt" and "photo_crossval_kfold.txt"; a line of it is a path, whose end is matched, and
    may end in a label's number. Where a domain's test list holds all of its training and
    validation images, as in the files that PACS comes with, it has no test part.
    """
    path = expanded(place)
    if not path.is_file():
        return _assigned(images, list(_lines(path)), path)
    lines = [
        (part, f"{path}, {part} of {domain}", identity)
        for domain, parts in SplitFile.load(path).domains.items()
        for part, identities in parts.items()
        for identity in identities
    ]
    return _assigned(images, lines, path)


def _lines(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (part, where it is written, line) of every line in the folder's lists."""
    lists = sorted(folder.glob("*.txt"))
    if not lists:
        raise DataError(
            f"{folder} holds no lists of images; name them train.txt, val.txt and test.txt"
        )
    for path in lists:
        meant = parts_in(path.stem)
        if len(meant) != 1:
            raise DataError(
                f"the name of {path} says {' and '.join(sorted(meant)) or 'no part'}, expected one "
                "of train, val and test; rename it, or move it elsewhere"
            )
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {path}: {error}; save it as UTF-8") from error
        (part,) = meant
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip() and not line.startswith("#"):
                yield part, f"{path}, line {number}", line.strip()


def _assigned(images: ImageSet, lines: Sequence[tuple[str, str, str]], path: Path) -> Parts:
    """The part of each image, by the lines that name it."""
    known = {identity: i for i, identity in enumerate(images.identities)}
    names = [identity.split("/", 2)[-1] for identity in images.identities]
    occurring = Counter(names)
    by_name = {name: i for i, name in enumerate(names) if occurring[name] == 1}
    skipped = {image.identity for image in images.skipped}
    listed: dict[str, dict[int, str]] = {part: {} for part in PARTS}
    unknown = []
    for part, where, line in lines:
        position = _position(line, known, by_name)
        if position is not None:
            listed[part].setdefault(position, where)
        elif line not in skipped:
            unknown.append(f"{where}: {printable(line)}")
    if unknown:
        more = f" (and {len(unknown) - 1} more lines)" if len(unknown) > 1 else ""
        raise DataError(
            f"{unknown[0]} is no image of {images.name}{more}; its images are called as "
            f"{images.identities[0]}; mend the list, or choose the data set it belongs to"
        )
    learned = {**listed["validation"], **listed["train"]}
    domain_of = images.domain.tolist()
    untested = {domain_of[i] for i in learned.keys() - listed["test"].keys()}
    whole = {domain_of[i] for i in learned} - untested
    listed["test"] = {i: w for i, w in listed["test"].items() if domain_of[i] not in whole}
    _check_apart(listed, images)
    parts: list[str | None] = [None] * len(images.identities)
    for part, positions in listed.items():
        for position in positions:
            parts[position] = part
    if not any(parts):
        raise DataError(f"{path} lists no image; write one a line")
    return parts


def _position(line: str, known: dict[str, int], by_name: dict[str, int]) -> int | None:
    """The image that a line names: as it is, without a label, or by the end of its path."""
    spelled = line.replace("\\", "/")
    for text in dict.fromkeys((line, spelled, re.sub(r"\s+-?\d+$", "", spelled))):
        ends = text.split("/")
        for start in range(len(ends)):
            if (found := known.get("/".join(ends[start:]))) is not None:
                return found
        if (found := by_name.get(text)) is not None:
            return found
    return None


def _check_apart(listed: dict[str, dict[int, str]], images: ImageSet) -> None:
    for first, second in itertools.combinations(PARTS, 2):
        if both := sorted(listed[first].keys() & listed[second].keys()):
            raise DataError(
                f"{images.identities[both[0]]} is a {first} and a {second} image, in "
                f"{listed[first][both[0]]} and {listed[second][both[0]]} (such images: "
                f"{len(both)}); remove one of the lines"
            )
