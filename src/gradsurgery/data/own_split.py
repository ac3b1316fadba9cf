"""The split that a run's options ask for: drawn, of a table's column, or of lists of files."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gradsurgery.data.image_set import ImageSet
from gradsurgery.data.splits import PARTS, Split, as_split, draw_split, part_name
from gradsurgery.documents.data_options import DataOptions, percentages
from gradsurgery.documents.record import SplitFile
from gradsurgery.errors import ArgumentError, DataError, printable

Parts = Sequence[str | None]


def split_of(options: DataOptions, images: ImageSet, seed: int) -> Split:
    """The split of `images` for a run with the options `split`, `test_on` and `target`.

    seed: what the split is drawn from, where it is drawn.

    With `test_on` "all" every image of the target is a test image, whatever part it is in.
    """
    from gradsurgery.data.duplicates import dropped

    without = dropped(images) if options.drop_duplicates else frozenset()
    drawn = percentages(options.split)
    if drawn is not None:
        fractions = tuple(percent / 100 for percent in drawn)
        split = draw_split(images, seed, fractions, without=without)
    elif options.split_per_run:
        raise ArgumentError(
            f"the split {options.split:.200} is the same for every run; leave --split-per-run out"
        )
    else:
        found = _column(images) if options.split == "column" else _listed(images, options.split)
        parts = [None if i in without else part for i, part in enumerate(found)]
        split = as_split(images, parts, seed)
    if options.test_on == "all" and options.target in images.domains:
        split = _with_all_tested(split, images, options.target, without)
    return split


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
            f"{images.name} has no column split; give percentages, as 70/10/20, or lists of files"
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
    path = Path(place).expanduser()
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError):
        is_folder = is_file = False
    if is_file and path.suffix == ".json":
        file = SplitFile.load(path)
        lines = [
            (part, f"{path}, {part} of {domain}", identity)
            for domain, parts in file.domains.items()
            for part, identities in parts.items()
            for identity in identities
        ]
    elif is_folder:
        lines = list(_lines(path))
    else:
        raise ArgumentError(
            f"the split {place:.200} is no percentages (70/10/20), not the word column, and no "
            "folder of lists or split.json; give one of them"
        )
    return _assigned(images, lines, path)


def _lines(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (part, where it is written, line) of every line in the folder's lists."""
    lists = sorted(folder.glob("*.txt"))
    if not lists:
        raise DataError(
            f"{folder} holds no lists of images; name them train.txt, val.txt and test.txt"
        )
    for path in lists:
        words = set(re.split(r"[\W_]+", path.stem.lower()))
        meant = {part for word in words if (part := _part_or_none(word))}
        if len(meant) != 1:
            raise DataError(
                f"the name of {path} says {' and '.join(sorted(meant)) or 'no part'}, expected one "
                "of train, val and test; rename it, or move it elsewhere"
            )
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {path}: {error}; save it as UTF-8") from error
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip() and not line.startswith("#"):
                yield meant.copy().pop(), f"{path}, line {number}", line.strip()


def _part_or_none(word: str) -> str | None:
    try:
        return part_name(word, "")
    except DataError:
        return None


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
    for d in range(len(images.domains)):
        of_domain = {i for i in learned if images.domain[i] == d}
        if of_domain and of_domain <= listed["test"].keys():
            listed["test"] = {i: w for i, w in listed["test"].items() if images.domain[i] != d}
        _check_apart(listed, images, d)
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


def _check_apart(listed: dict[str, dict[int, str]], images: ImageSet, domain: int) -> None:
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        both = sorted(
            i for i in listed[first] if i in listed[second] and images.domain[i] == domain
        )
        if both:
            raise DataError(
                f"{images.identities[both[0]]} is a {first} and a {second} image, in "
                f"{listed[first][both[0]]} and {listed[second][both[0]]} (such images: "
                f"{len(both)}); remove one of the lines"
            )
