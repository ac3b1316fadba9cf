"""Images in folders: domain/class/image."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from gradsurgery.data.source import Source, list_images
from gradsurgery.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})


class FolderSource(Source):
    """The images of a folder laid out as domain/class/image.

    Hidden files and files that are no images are left out of account. An image's identity does
    not depend on where the folder lies.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        found = list(_images(root))
        self._paths = [Path(entry.path) for _, _, entry in found]
        stats = [entry.stat() for _, _, entry in found]
        listing = list_images(
            str(root),
            [domain for domain, _, _ in found],
            [label for _, label, _ in found],
            [entry.name for _, _, entry in found],
            domain_order=[entry.name for entry in _folders(root)],
        )
        super().__init__(root.resolve().name, listing)
        digest = hashlib.sha256(str(root.resolve()).encode())
        for row in listing.rows:
            stat = stats[row]
            digest.update(f"\n{self._paths[row]}\0{stat.st_size}\0{stat.st_mtime_ns}".encode())
        self._signature = f"folder/{digest.hexdigest()}"

    def contents(self) -> Iterator[tuple[int, bytes]]:
        """Yield every file's bytes."""
        for position, row in enumerate(self.listing.rows):
            path = self._paths[row]
            try:
                yield position, path.read_bytes()
            except OSError as error:
                raise DataError(
                    f"cannot read {path}: {error.strerror}; check that it exists and that you may "
                    "read it"
                ) from error

    def signature(self) -> str:
        """Paths, sizes and times of modification."""
        return self._signature

    def location(self, position: int) -> str:
        """The image's path."""
        return str(self._paths[self.listing.rows[position]])


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(
            f"cannot list {folder}: {error.strerror}; check that you may read it"
        ) from error
    return sorted(visible, key=lambda entry: entry.name)


def _folders(folder: Path) -> list[os.DirEntry[str]]:
    return [entry for entry in _entries(folder) if entry.is_dir()]


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.is_file() and Path(entry.name).suffix.lower() in IMAGE_SUFFIXES


def _images(root: Path) -> Iterator[tuple[str, str, os.DirEntry[str]]]:
    """Yield (domain, class, file) of every image, and refuse images in any other place."""
    _refuse_images(root, "the data set's folder")
    for domain in _folders(root):
        _refuse_images(Path(domain.path), f"domain {domain.name}")
        for label in _folders(Path(domain.path)):
            for entry in _entries(Path(label.path)):
                if entry.is_dir():
                    raise DataError(
                        f"{entry.path} is a folder inside class {label.name} of domain "
                        f"{domain.name}, expected images; lay the folder out as "
                        "domain/class/image"
                    )
                if _is_image(entry):
                    yield domain.name, label.name, entry


def _refuse_images(folder: Path, what: str) -> None:
    for entry in _entries(folder):
        if _is_image(entry):
            raise DataError(
                f"{entry.path} lies directly in {what}, expected it in a class folder; lay the "
                "folder out as domain/class/image"
            )
