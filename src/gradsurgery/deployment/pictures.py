"""The pictures that a person names, files, folders or objects, and their decoding ahead of use."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from gradsurgery.data import BadImageError, SkippedImage
from gradsurgery.data.folder import FOLDER, kind_of, visible_entries
from gradsurgery.data.formats import readable_suffixes
from gradsurgery.data.loader import worked_on
from gradsurgery.data.manifest import SUFFIXES
from gradsurgery.errors import ArgumentError, DataError, printable


class Picture(NamedTuple):
    """What it is called, and what `Preparation` takes."""

    name: str
    content: Any


def check_named(paths: Sequence[Path]) -> None:
    """Raise `ArgumentError` where a path that a person named is not there, or is a table."""
    if absent := [path for path in paths if not path.exists()]:
        others = f" (nor {len(absent) - 1} more of those named)" if absent[1:] else ""
        raise ArgumentError(
            f"there is no such file or folder: {printable(str(absent[0]))}{others}; check how it "
            "is spelled"
        )
    kinds = (*SUFFIXES, ".parquet")
    if tables := [path for path in paths if path.suffix.lower() in kinds and path.is_file()]:
        raise ArgumentError(
            f"{printable(str(tables[0]))} is a table; name pictures, or folders of them (a table "
            "with labels is for gradsurgery evaluate)"
        )


def listed_pictures(
    given: Any, *, or_none: bool = False
) -> tuple[Iterator[Picture], list[SkippedImage]]:
    """Every picture that is meant, in order, and the files of folders that are none.

    given: a picture (see `Preparation`), a folder, or an iterable of them; an array of four
        dimensions is a batch. Folders are gone through to any depth, by name; hidden files count
        as absent. The second list is complete once the first has been gone through.

    or_none: whether nothing may be given.

    Raises `DataError` for a folder without pictures, `ArgumentError` where nothing is given.
    """
    left_out: list[SkippedImage] = []
    return _pictures(_separate(given), left_out, or_none), left_out


def _separate(given: Any) -> Iterable[Any]:
    if isinstance(given, np.ndarray | Tensor):
        return given if given.ndim == 4 else [given]
    alone = isinstance(given, str | bytes | Path | Picture) or not isinstance(given, Iterable)
    return [given] if alone else given


def _pictures(
    given: Iterable[Any], left_out: list[SkippedImage], or_none: bool
) -> Iterator[Picture]:
    seen: set[str] = set()
    position = -1
    for position, each in enumerate(given):
        if isinstance(each, Picture):  # which has its name
            yield each
            continue
        if not isinstance(each, str | Path):
            yield Picture(f"image {position}", each)
            continue
        path, before = Path(each), len(left_out)
        empty = True
        for found in _walk(path, readable_suffixes(), left_out) if path.is_dir() else [path]:
            empty = False
            name = printable(str(found))
            if name not in seen:  # named twice, or in a folder that is named too
                seen.add(name)
                yield Picture(name, found)
        if empty:
            others = len(left_out) - before
            files = f"{others} other file{'' if others == 1 else 's'}"
            found_there = f"no picture, but {files}" if others else "no file"
            raise DataError(f"{path} holds {found_there}; name a folder with pictures")
    if position < 0 and not or_none:
        raise ArgumentError("no image is given; name files or folders")


def _walk(folder: Path, suffixes: frozenset[str], left_out: list[SkippedImage]) -> Iterator[Path]:
    """The pictures below a folder, sorted by name within each; links to folders are not followed.

    A link may lead back to where it lies.
    """
    for entry in visible_entries(folder):
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(path, suffixes, left_out)
        elif path.suffix.lower() in suffixes:
            yield path
        else:
            kind = kind_of(entry, suffixes)
            why = "a link to a folder" if kind == FOLDER else kind
            left_out.append(SkippedImage(printable(str(path)), printable(why)))


Key = TypeVar("Key")
Decoded = UInt8[np.ndarray, "size size 3"]
Job = tuple[Key, Callable[[], Decoded]]

_AHEAD = 2  # batches of decoded pictures that may wait


@dataclass(frozen=True)
class Prepared(Generic[Key]):
    """Decoded pictures that follow one another, `keys` of them; `bad` those between, and why."""

    keys: list[Key]
    pixels: UInt8[np.ndarray, "batch size size 3"]
    bad: list[tuple[Key, str]]


def prepared(
    jobs: Iterable[Job[Key]], size: int, batch: int, workers: int
) -> Iterator[Prepared[Key]]:
    """Do the jobs, `workers` at a time, and yield what they give, in their order, in batches.

    A job that raises `BadImageError` is in `bad`. At most so many pictures are in memory as three
    batches have, however many jobs there are.
    """
    keys: list[Key] = []
    bad: list[tuple[Key, str]] = []
    pixels = np.empty((batch, size, size, 3), dtype=np.uint8)
    with closing(worked_on(jobs, _done, workers=workers, ahead=_AHEAD * batch)) as decoded:
        for key, found in decoded:
            if isinstance(found, str):
                bad.append((key, found))
                continue
            pixels[len(keys)] = found
            keys.append(key)
            if len(keys) == batch:
                yield Prepared(keys, pixels, bad)
                keys, bad, pixels = [], [], np.empty_like(pixels)
    if keys or bad:
        yield Prepared(keys, pixels[: len(keys)], bad)


def _done(key: Key, job: Callable[[], Decoded]) -> tuple[Key, Decoded | str]:
    """What the job gives, or why the picture is a bad one."""
    try:
        return key, job()
    except BadImageError as error:
        return key, str(error)
