"""The pictures that a person names: files, folders of any depth, or objects in memory."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from gradsurgery.data import SkippedImage
from gradsurgery.data.formats import readable_suffixes
from gradsurgery.errors import ArgumentError, DataError, printable


class Picture(NamedTuple):
    """What it is called, and what `Preparation` takes."""

    name: str
    content: Any


def check_named(paths: Sequence[Path]) -> None:
    """Raise `ArgumentError` where a path that a person named is not there."""
    if absent := [path for path in paths if not path.exists()]:
        others = f" (nor {len(absent) - 1} more of those named)" if absent[1:] else ""
        raise ArgumentError(
            f"there is no such file or folder: {printable(str(absent[0]))}{others}; check how it "
            "is spelled"
        )


def listed_pictures(given: Any) -> tuple[Iterator[Picture], list[SkippedImage]]:
    """Every picture that is meant, in order, and the files of folders that are none.

    given: a picture (see `Preparation`), a folder, or an iterable of them; an array of four
        dimensions is a batch. Folders are gone through to any depth, by name; hidden files count
        as absent. The second list is complete once the first has been gone through.

    Raises `DataError` for a folder without pictures, `ArgumentError` where nothing is given.
    """
    left_out: list[SkippedImage] = []
    return _pictures(_separate(given), left_out), left_out


def _separate(given: Any) -> Iterable[Any]:
    if isinstance(given, np.ndarray | Tensor):
        return given if given.ndim == 4 else [given]
    alone = isinstance(given, str | bytes | Path) or not isinstance(given, Iterable)
    return [given] if alone else given


def _pictures(given: Iterable[Any], left_out: list[SkippedImage]) -> Iterator[Picture]:
    seen: set[str] = set()
    position = -1
    for position, each in enumerate(given):
        if not isinstance(each, str | Path):
            yield Picture(f"image {position}", each)
            continue
        path = Path(each)
        paths = _walk(path, left_out) if path.is_dir() else [path]
        none = True
        for found in paths:
            none = False
            name = printable(str(found))
            if name not in seen:  # named twice, or in a folder that is named too
                seen.add(name)
                yield Picture(name, found)
        if none:
            other = f"{len(left_out)} other files" if left_out else "no file"
            raise DataError(f"{path} holds no picture, but {other}; name a folder that does")
    if position < 0:
        raise ArgumentError("no image is given; name files or folders")


def _walk(folder: Path, left_out: list[SkippedImage]) -> Iterator[Path]:
    """The pictures below a folder, sorted by name within each; links to folders are not followed.

    A link may lead back to where it lies.
    """
    suffixes = readable_suffixes()
    try:
        with os.scandir(folder) as entries:
            visible = sorted((e for e in entries if not e.name.startswith(".")), key=_name)
    except OSError as error:
        raise DataError(
            f"cannot list {folder}: {error.strerror}; check that you may read it"
        ) from error
    for entry in visible:
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(path, left_out)
        elif path.suffix.lower() in suffixes:
            yield path
        else:
            reason = f"{path.suffix} is not read" if path.suffix else "its name has no ending"
            kind = "a link to a folder" if entry.is_dir() else reason
            left_out.append(SkippedImage(printable(str(path)), printable(kind)))


def _name(entry: "os.DirEntry[str]") -> str:
    return entry.name
