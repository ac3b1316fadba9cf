"""Images that are files: in folders domain/class/image, or as a layout says."""

import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from gradsurgery.data.formats import readable_suffixes, why_unread
from gradsurgery.data.layout import Layout
from gradsurgery.data.source import SkippedImage, Source, naming_left_out
from gradsurgery.data.splits import parts_in
from gradsurgery.errors import DataError, printable


@dataclass(frozen=True)
class ImageFile:
    """An image's file, its domain and class, and what it is called within them.

    part: of a split, where a table says so, in its words.
    group: what it belongs to within its domain, where that is said.
    """

    path: Path
    domain: str
    label: str
    name: str
    part: str | None = None
    group: str | None = None


class FilesSource(Source):
    """Images that each lie in a file of their own.

    root: what the user has named. An image's identity does not depend on where it lies.
    reading: what else its listing follows from, as text.
    left_out: files that are not used, which an error names too.
    """

    fewest_domains = 1

    def __init__(
        self,
        root: Path,
        files: Sequence[ImageFile],
        *,
        reading: str = "",
        left_out: Sequence[SkippedImage] = (),
        domain_order: Sequence[str] | None = None,
    ) -> None:
        self.left_out = tuple(left_out)
        self._place = f"{reading}{root.resolve()}"
        try:
            super().__init__(
                root.resolve().name or str(root.resolve()),
                [file.domain for file in files],
                [file.label for file in files],
                [file.name for file in files],
                domain_order=domain_order,
            )
        except DataError as error:
            raise naming_left_out(error, self.left_out) from None
        self._paths = [file.path for file in files]
        self._signature = self._state_of_files()
        if any(file.part for file in files):
            self.parts = tuple(files[row].part for row in self.listing.rows)
        if any(file.group for file in files):
            self.groups = tuple(files[row].group for row in self.listing.rows)

    @override
    def place(self) -> str:
        return f"folder/{self._place}"

    @override
    def encoded(self) -> Iterator[bytes]:
        return map(_content, self._paths)

    @override
    def contents(self, only: Collection[int] | None = None) -> Iterator[tuple[int, bytes]]:
        chosen = self.positions.tolist()
        if only is not None:
            chosen = sorted(only, key=self.listing.rows.__getitem__)
        return ((i, _content(self._paths[self.listing.rows[i]])) for i in chosen)

    @override
    def signature(self) -> str:
        return self._signature

    def _state_of_files(self) -> str:
        """Paths, sizes and times, in short; that of the last change is one that nobody can set."""
        digest = hashlib.sha256(os.fsencode(self._place))
        for path in map(self._paths.__getitem__, self.listing.rows):
            try:
                stat = path.stat()
            except OSError as error:
                raise unreadable(path, error) from error
            times = f"{stat.st_mtime_ns}\0{stat.st_ctime_ns}"
            digest.update(os.fsencode(f"\n{path}\0{stat.st_size}\0{times}"))
        return f"folder/{digest.hexdigest()}"

    @override
    def location(self, position: int) -> str:
        return str(self._paths[self.listing.rows[position]])


def unreadable(path: Path, error: OSError) -> DataError:
    """The error for a file that cannot be read."""
    return DataError(
        f"cannot read {path}: {error.strerror}; check that it exists and that you may read it"
    )


CLASS_AND_NAME = "{class}/{name}"  # of a folder whose images are of one domain
_HIDDEN = (".", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
"""How the names begin of what Unix, macOS, Synology's disks and Windows keep for themselves."""
FOLDER, IMAGE, ELSEWHERE = "a folder", "an image", "it does not lie in class/image"


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


class FolderSource(FilesSource):
    """The images of a folder laid out as domain/class/image.

    Images are the files whose names end as those of a format that can be read here. `left_out` has
    other files of a class, broken links and classes without an image; what is hidden, or in a
    Mac's __MACOSX, is not seen.
    """

    def __init__(self, root: Path) -> None:
        files: list[ImageFile] = []
        left_out: list[SkippedImage] = []
        folders: tuple[list[str], list[str]] = [], []  # of domains, of classes
        for above, entry, kind in _walk(root, readable_suffixes()):
            if kind == FOLDER and len(above) == 2:
                layout = "{domain}/{class}/**/{name}"
                if parts_in(above[0]):  # as in train/photo/dog
                    layout = "*/{domain}/{class}/{name}"
                elif parts_in(above[1]):  # as in photo/train/dog
                    layout = "{domain}/*/{class}/{name}"
                raise DataError(
                    f"{entry.path} is a folder inside class {above[1]} of domain {above[0]}, "
                    "expected images; lay the folder out as domain/class/image, or say how it is "
                    f'with --layout, as "{layout}"'
                )
            if kind == IMAGE and len(above) < 2:
                what = f"domain {above[0]}" if above else "the data set's folder"
                raise DataError(
                    f"{entry.path} lies directly in {what}, expected it in a class folder; lay the "
                    "folder out as domain/class/image, or say how it is with --layout"
                )
            if kind == FOLDER:
                folders[len(above)].append(entry.name)
            elif kind == IMAGE:
                files.append(ImageFile(Path(entry.path), above[0], above[1], entry.name))
            elif len(above) == 2 or entry.is_symlink():
                left_out.append(_skipped("/".join((*above, entry.name)), kind))
        empty = sorted(set(folders[1]) - {file.label for file in files})
        left_out += [_skipped(f"class {label}", "0 images, none in any domain") for label in empty]
        super().__init__(root, files, left_out=left_out, domain_order=folders[0])


class LayoutSource(FilesSource):
    """The images of a folder whose paths say domain and class as `layout` describes.

    alone: the domain of all images, where the layout says none; to evaluate on.

    Files that are no images and images whose path says something else are listed in `left_out`;
    hidden files and folders count as absent.
    """

    def __init__(self, root: Path, layout: str, alone: str = "") -> None:
        pattern = Layout(layout, alone)
        otherwise = ELSEWHERE if layout == CLASS_AND_NAME else f"not as the layout {layout}"
        files, left_out = [], []
        for above, entry, kind in _walk(root, readable_suffixes(), seen=set()):
            path = "/".join((*above, entry.name))
            said = pattern.read(path) if kind == IMAGE else None
            if said is not None:
                place = Path(entry.path)
                files.append(ImageFile(place, said.domain, said.label, said.name, group=said.group))
            elif kind != FOLDER:
                left_out.append(_skipped(path, otherwise if kind == IMAGE else kind))
        if not files:
            nothing = f"{root} holds no image in {layout}; give the layout that its paths have"
            raise naming_left_out(DataError(nothing), left_out)
        super().__init__(root, files, reading=f"layout {layout!r} ", left_out=left_out)


def _skipped(path: str, why: str) -> SkippedImage:
    return SkippedImage(printable(path), printable(why))


def _walk(
    folder: Path,
    suffixes: frozenset[str],
    above: tuple[str, ...] = (),
    seen: set[str] | None = None,
) -> Iterator[tuple[tuple[str, ...], os.DirEntry[str], str]]:
    """Yield (the folders it lies in, the entry, what it is) of everything, however deep.

    seen: where given, a folder that links lead to twice is gone through once.
    """
    if seen is not None:
        if (place := os.path.realpath(folder)) in seen:
            return
        seen.add(place)
    for entry in visible_entries(folder):
        kind = kind_of(entry, suffixes)
        yield above, entry, kind
        if kind == FOLDER:
            yield from _walk(Path(entry.path), suffixes, (*above, entry.name), seen)


def visible_entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name, but for what is hidden or a system's; raises `DataError`."""
    try:
        with os.scandir(folder) as entries:
            visible = [each for each in entries if not each.name.startswith(_HIDDEN)]
    except OSError as error:
        raise DataError(
            f"cannot list {folder}: {error.strerror}; check that you may read it"
        ) from error
    return sorted(visible, key=lambda entry: entry.name)


def kind_of(entry: os.DirEntry[str], suffixes: frozenset[str]) -> str:
    """`FOLDER`, `IMAGE` (its name ends in one of the `suffixes`), or why it is left out."""
    try:
        if entry.is_dir():
            return FOLDER
        if not entry.is_file():
            broken = entry.is_symlink() and not Path(entry.path).exists()
            return "a broken link" if broken else "not a regular file"
    except OSError:  # a link that leads back to itself
        return "a broken link"
    suffix = Path(entry.name).suffix.lower()
    return IMAGE if suffix in suffixes else why_unread(suffix)
