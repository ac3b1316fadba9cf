"""Images that are files: what a folder, its layout and a table of paths have in common."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from gradsurgery.data.source import SkippedImage, Source, naming_left_out
from gradsurgery.errors import DataError


@dataclass(frozen=True)
class ImageFile:
    """An image's file, its domain and class, and what it is called within them.

    part: of a split, where a table says so, in its words.
    """

    path: Path
    domain: str
    label: str
    name: str
    part: str | None = None


class FilesSource(Source):
    """Images that each lie in a file of their own.

    root: what the user has named. An image's identity does not depend on where it lies.
    reading: what else its listing follows from, as text.
    left_out: files that are not used, which an error names too.
    """

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
        self._signature = self._stated()
        if any(file.part for file in files):
            self.parts = tuple(files[row].part for row in self.listing.rows)

    @override
    def place(self) -> str:
        return f"folder/{self._place}"

    @override
    def encoded(self) -> Iterator[bytes]:
        for path in self._paths:
            try:
                yield path.read_bytes()
            except OSError as error:
                raise unreadable(path, error) from error

    @override
    def signature(self) -> str:
        return self._signature

    def _stated(self) -> str:
        """Paths, sizes and times of modification, in short."""
        digest = hashlib.sha256(os.fsencode(self._place))
        for row in self.listing.rows:
            path = self._paths[row]
            try:
                stat = path.stat()
            except OSError as error:
                raise unreadable(path, error) from error
            digest.update(os.fsencode(f"\n{path}\0{stat.st_size}\0{stat.st_mtime_ns}"))
        return f"folder/{digest.hexdigest()}"

    @override
    def location(self, position: int) -> str:
        return str(self._paths[self.listing.rows[position]])


def unreadable(path: Path, error: OSError) -> DataError:
    """The error for a file that cannot be read."""
    return DataError(
        f"cannot read {path}: {error.strerror}; check that it exists and that you may read it"
    )
