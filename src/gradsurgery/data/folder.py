"""Images in folders: domain/class/image."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from typing_extensions import override

from gradsurgery.data.decode import readable_suffixes
from gradsurgery.data.source import SkippedImage, Source
from gradsurgery.errors import DataError, printable

FOLDER, IMAGE = "a folder", "an image"


class FolderSource(Source):
    """The images of a folder laid out as domain/class/image.

    Images are the files whose names end as those of a format that Pillow reads. Other files of a
    class and broken links are listed in `left_out`; hidden files count as absent. An image's
    identity does not depend on where the folder lies.
    """

    def __init__(self, root: Path) -> None:
        found: list[tuple[tuple[str, ...], os.DirEntry[str]]] = []
        left_out: list[SkippedImage] = []
        domains = []
        for above, entry, kind in _walk(root, (), readable_suffixes()):
            if kind == FOLDER:
                domains += [] if above else [entry.name]
            elif kind == IMAGE:
                found.append((above, entry))
            else:
                left_out.append(
                    SkippedImage(printable("/".join((*above, entry.name))), printable(kind))
                )
        try:
            super().__init__(
                root.resolve().name or str(root.resolve()),
                [above[0] for above, _ in found],
                [above[1] for above, _ in found],
                [entry.name for _, entry in found],
                domain_order=domains,
            )
        except DataError as error:
            if not left_out:
                raise
            first = f"{left_out[0].identity} ({left_out[0].reason})"
            raise DataError(
                f"{error}; files left out: {len(left_out)}, the first {first}"
            ) from None
        self.left_out = tuple(left_out)
        self._paths = [Path(entry.path) for _, entry in found]
        digest = hashlib.sha256(os.fsencode(root.resolve()))
        for row in self.listing.rows:
            stat = _stat(found[row][1])
            text = f"\n{self._paths[row]}\0{stat.st_size}\0{stat.st_mtime_ns}"
            digest.update(os.fsencode(text))
        self._signature = f"folder/{digest.hexdigest()}"

    @override
    def encoded(self) -> Iterator[bytes]:
        for path in self._paths:
            try:
                yield path.read_bytes()
            except OSError as error:
                raise _unreadable(path, error) from error

    @override
    def signature(self) -> str:
        return self._signature  # paths, sizes and times of modification

    @override
    def location(self, position: int) -> str:
        return str(self._paths[self.listing.rows[position]])


def _walk(
    folder: Path, above: tuple[str, ...], suffixes: frozenset[str]
) -> Iterator[tuple[tuple[str, ...], os.DirEntry[str], str]]:
    """Yield (the folders it lies in, the entry, what it is) of all that is of account.

    Raises `DataError` for an image that lies elsewhere than in domain/class, and for a folder that
    lies there.
    """
    for entry in _entries(folder):
        kind = _kind(entry, suffixes)
        if kind == FOLDER and len(above) == 2:
            raise DataError(
                f"{entry.path} is a folder inside class {above[1]} of domain {above[0]}, expected "
                "images; lay the folder out as domain/class/image"
            )
        if kind == IMAGE and len(above) < 2:
            what = f"domain {above[0]}" if above else "the data set's folder"
            raise DataError(
                f"{entry.path} lies directly in {what}, expected it in a class folder; lay the "
                "folder out as domain/class/image"
            )
        if kind == FOLDER or len(above) == 2 or entry.is_symlink():
            yield above, entry, kind
        if kind == FOLDER:
            yield from _walk(Path(entry.path), (*above, entry.name), suffixes)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(
            f"cannot list {folder}: {error.strerror}; check that you may read it"
        ) from error
    return sorted(visible, key=lambda entry: entry.name)


def _kind(entry: os.DirEntry[str], suffixes: frozenset[str]) -> str:
    """`FOLDER`, `IMAGE`, or why it is left out."""
    try:
        if entry.is_dir():
            return FOLDER
        if not entry.is_file():
            broken = entry.is_symlink() and not Path(entry.path).exists()
            return "a broken link" if broken else "not a regular file"
    except OSError:  # a link that leads back to itself
        return "a broken link"
    suffix = Path(entry.name).suffix.lower()
    if suffix in suffixes:
        return IMAGE
    return f"{suffix} is not read" if suffix else "its name has no ending"


def _stat(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        return entry.stat()
    except OSError as error:
        raise _unreadable(Path(entry.path), error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot read {path}: {error.strerror}; check that it exists and that you may read it"
    )
