"""Images in folders: domain/class/image, or as a layout says."""

import os
from collections.abc import Iterator
from pathlib import Path

from gradsurgery.data.files import FilesSource, ImageFile
from gradsurgery.data.formats import readable_suffixes, why_unread
from gradsurgery.data.layout import Layout
from gradsurgery.data.source import SkippedImage
from gradsurgery.errors import DataError, printable

FOLDER, IMAGE = "a folder", "an image"


class FolderSource(FilesSource):
    """The images of a folder laid out as domain/class/image.

    Images are the files whose names end as those of a format that can be read here. Other files of
    a class and broken links are listed in `left_out`; hidden files count as absent. An image's
    identity does not depend on where the folder lies.
    """

    def __init__(self, root: Path) -> None:
        files: list[ImageFile] = []
        left_out: list[SkippedImage] = []
        domains = []
        for above, entry, kind in _walk(root, (), readable_suffixes()):
            if kind == FOLDER:
                domains += [] if above else [entry.name]
            elif kind == IMAGE:
                files.append(ImageFile(Path(entry.path), above[0], above[1], entry.name))
            else:
                left_out.append(
                    SkippedImage(printable("/".join((*above, entry.name))), printable(kind))
                )
        super().__init__(root, files, left_out=left_out, domain_order=domains)


class OneDomainSource(FilesSource):
    """The images of a folder laid out as class/image, all of the domain `domain`: to evaluate on.

    What else lies there is as for `FolderSource`, or listed in `left_out`.
    """

    fewest_domains = 1

    def __init__(self, root: Path, domain: str) -> None:
        files: list[ImageFile] = []
        left_out: list[SkippedImage] = []
        for path, entry, kind in _walk_all(root, "", readable_suffixes(), set()):
            label, _, name = path.partition("/")
            if kind == IMAGE and name and "/" not in name:
                files.append(ImageFile(Path(entry.path), domain, label, name))
            else:
                why = "it does not lie in class/image" if kind == IMAGE else kind
                left_out.append(SkippedImage(printable(path), printable(why)))
        if not files:
            raise DataError(f"{root} holds no image in class/image; name a folder of that layout")
        super().__init__(root, files, left_out=left_out)


class LayoutSource(FilesSource):
    """The images of a folder whose paths say domain and class as `layout` describes.

    Files that are no images and images whose path says something else are listed in `left_out`;
    hidden files and folders count as absent.
    """

    def __init__(self, root: Path, layout: str) -> None:
        pattern = Layout(layout)
        files: list[ImageFile] = []
        left_out: list[SkippedImage] = []
        for path, entry, kind in _walk_all(root, "", readable_suffixes(), set()):
            if kind != IMAGE:
                left_out.append(SkippedImage(printable(path), printable(kind)))
            elif (said := pattern.read(path)) is None:
                left_out.append(SkippedImage(printable(path), f"not as the layout {layout}"))
            else:
                files.append(ImageFile(Path(entry.path), *said))
        super().__init__(root, files, reading=f"layout {layout!r} ", left_out=left_out)


def _walk_all(
    folder: Path, above: str, suffixes: frozenset[str], seen: set[str]
) -> Iterator[tuple[str, os.DirEntry[str], str]]:
    """Yield (path from the root, the entry, what it is) of every file, however deep.

    A folder that links lead to twice is gone through once.
    """
    if (place := os.path.realpath(folder)) in seen:
        return
    seen.add(place)
    for entry in _entries(folder):
        kind = _kind(entry, suffixes)
        if kind == FOLDER:
            yield from _walk_all(Path(entry.path), f"{above}{entry.name}/", suffixes, seen)
        else:
            yield f"{above}{entry.name}", entry, kind


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
    return why_unread(suffix)
