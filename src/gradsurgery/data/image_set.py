"""A decoded data set, and the cache's folders of such: pixels in `images.bin`, else `meta.json`."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from gradsurgery.atomic import expanded
from gradsurgery.data.derived import decoder_of
from gradsurgery.data.source import SkippedImage, Source, count_images
from gradsurgery.documents.data_options import Resize
from gradsurgery.documents.document import Document
from gradsurgery.errors import DataError, OutputError

FORMAT = 1
_PIXELS = "images.bin"


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Decoded images of several domains, in the order of domain, class and identity.

    name: the data set's name.
    domains, classes: their names.
    images: uint8 [n, size, size, 3], RGB; read-only, memory-mapped.
    identities: n unique names "domain/class/file".
    domain, label: int64 [n], positions in `domains` and `classes`.
    size: side in pixels.
    digest: sha256 of everything the pixels and labels follow from, as hexadecimal digits.
    skipped: images left out because they could not be decoded.
    folder: where the cache keeps it; None for a set that is not from the cache.
    left_out: files that lie among the images and were not taken for any.
    provenance: where the code of a source from another package comes from.
    resize_first: side to which images were resized before they were resized to `size`.
    decoder: the method that decoded them, None for `decode_image`.
    resize: how images that were not square became so.
    parts: each image's part of a split, in the words of the source; None where it says nothing.
    groups: what each image belongs to within its domain, as a patient; None where nothing is said.
    hashes: the sha256 of each image's file, as hexadecimal digits; empty where it is not known.
    gaps: whether a domain may lack classes.
    """

    name: str
    domains: tuple[str, ...]
    classes: tuple[str, ...]
    images: NDArray[np.uint8]
    identities: tuple[str, ...]
    domain: NDArray[np.int64]
    label: NDArray[np.int64]
    size: int
    digest: str
    skipped: tuple[SkippedImage, ...] = ()
    folder: Path | None = None
    left_out: tuple[SkippedImage, ...] = ()
    provenance: dict[str, str | None] | None = None
    resize_first: int | None = None
    decoder: str | None = None
    resize: Resize = "squash"
    parts: tuple[str | None, ...] | None = None
    groups: tuple[str | None, ...] | None = None
    hashes: tuple[str, ...] = ()
    gaps: bool = False

    def counts(self) -> NDArray[np.int64]:
        """Number of images of each domain (row) and class (column)."""
        return count_images((len(self.domains), len(self.classes)), self.domain, self.label)

    @property
    def has_cached_pixels(self) -> bool:
        """Whether the pixels are those that the cache keeps under `digest`, all and in order.

        A copy with changed ones (`dataclasses.replace`) has the folder and the digest as well.
        """
        pixels = self.images
        if self.folder is None or not isinstance(pixels, np.memmap) or pixels.filename is None:
            return False
        file = self.folder / _PIXELS
        with suppress(OSError):  # it may be gone by now
            whole = pixels.flags.c_contiguous and pixels.nbytes == file.stat().st_size
            return whole and Path(pixels.filename) == file.resolve()
        return False


def content_hashes(source: Source) -> list[bytes]:
    """The sha256 of every encoded image, in the order of the listing."""
    hashes = [b""] * len(source.listing.identities)
    for position, content in source.contents():
        hashes[position] = hashlib.sha256(content).digest()
    return hashes


def content_digest(source: Source, size: int, hashes: list[bytes], decoder: str | None) -> str:
    """The name of the folder: sha256 of all that its pixels and labels follow from."""
    description: dict[str, Any] = {
        "format": FORMAT,
        "size": size,
        "resize_first": source.resize_first,
        "domains": source.domains,
        "classes": source.classes,
        "images": [
            (identity, content.hex())
            for identity, content in zip(source.listing.identities, hashes, strict=True)
        ],
    }
    if source.resize != "squash":
        description["resize"] = source.resize
    if decoder is not None:
        description["decoder"] = decoder
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def allocate(file: BinaryIO, size: int) -> None:
    """Reserve `size` bytes on the disk: writing to a map beyond a full disk kills the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    block = bytes(1 << 20)
    for start in range(0, size, len(block)):
        file.write(block[: size - start])
    file.flush()


class ImageSetFile(Document):
    """What is in a folder of decoded images beside their pixels; names as those of `ImageSet`."""

    file_name: ClassVar[str] = "meta.json"
    title: ClassVar[str] = "description of decoded images"
    cure: ClassVar[str] = "delete its folder"

    digest: str
    size: int
    domains: list[str]
    classes: list[str]
    identities: list[str]
    domain: list[int]
    label: list[int]
    skipped: list[list[str]]
    hashes: list[str]


def write_meta(
    folder: Path,
    digest: str,
    size: int,
    source: Source,
    *,
    bad: dict[int, str],
    hashes: Sequence[bytes],
) -> None:
    """Describe the images of `folder`, of which those in `bad` are missing."""
    listing = source.listing
    kept = [i for i in range(len(listing.identities)) if i not in bad]
    ImageSetFile(
        digest=digest,
        size=size,
        domains=list(listing.domains),
        classes=list(listing.classes),
        identities=[listing.identities[i] for i in kept],
        domain=listing.domain[kept].tolist(),
        label=listing.label[kept].tolist(),
        skipped=[[listing.identities[i], reason] for i, reason in sorted(bad.items())],
        hashes=[hashes[i].hex() for i in kept],
    ).save(folder)


def read_image_set(cache: Path, digest: str | None, source: Source) -> ImageSet | None:
    """The images of `source` in the cache's folder `digest`; None without one that is whole."""
    if digest is None:
        return None
    folder = cache / digest
    try:
        file = ImageSetFile.load(folder / ImageSetFile.file_name)
        size, count = file.size, len(file.identities)
        pixels = folder / _PIXELS
        whole = pixels.stat().st_size == count * size * size * 3
        lists = file.domain, file.label, file.hashes
        if file.digest != digest or not whole or any(len(each) != count for each in lists):
            return None
        return ImageSet(
            source.name,
            source.domains,
            source.classes,
            np.memmap(pixels, np.uint8, "r", shape=(count, size, size, 3)),
            tuple(file.identities),
            np.array(file.domain, dtype=np.int64),
            np.array(file.label, dtype=np.int64),
            size,
            digest,
            tuple(SkippedImage(identity, reason) for identity, reason in file.skipped),
            folder,
            source.left_out,
            source.provenance,
            resize_first=source.resize_first,
            decoder=decoder_of(source),
            resize=source.resize,
            parts=_said_of(source.parts, source, file.identities),
            groups=_said_of(source.groups, source, file.identities),
            hashes=tuple(file.hashes),
            gaps=source.gaps,
        )
    # Any of these means that the folder is missing or damaged: it is made anew.
    except (OSError, ValueError, DataError):
        return None


def _said_of(
    texts: tuple[str | None, ...] | None, source: Source, identities: list[str]
) -> tuple[str | None, ...] | None:
    """What the source says of each image in `texts`, for the images that are kept."""
    if texts is None:
        return None
    said = dict(zip(source.listing.identities, texts, strict=True))
    return tuple(said.get(identity) for identity in identities)


def sync_folder(folder: Path) -> None:
    """Flush a folder and the files right in it to the disk."""
    for path in [*(path for path in folder.iterdir() if path.is_file()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def cache_folder(cache: Path | str | None = None) -> Path:
    """The argument, else $GRADSURGERY_CACHE, else gradsurgery in $XDG_CACHE_HOME or ~/.cache."""
    if cache is not None:
        return expanded(cache)
    if own := os.environ.get("GRADSURGERY_CACHE"):
        return expanded(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gradsurgery"


def folder_lock(cache: Path, name: str, timeout: float = -1.0) -> FileLock:
    """The lock of the folder or index called `name`; the system frees that of a dead process."""
    path = cache / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, timeout)


@dataclass(frozen=True)
class CachedSet:
    """A folder of decoded images.

    size: side of the images in pixels; 0 where the folder is damaged.
    last_used: seconds since 1970, when a run last opened it.
    """

    folder: Path
    size: int
    images: int
    domains: tuple[str, ...]
    bytes: int
    last_used: float

    @property
    def days_unused(self) -> float:
        """Since it was last opened."""
        return max(0.0, (time.time() - self.last_used) / 86_400.0)


def cached_sets(cache: Path) -> list[CachedSet]:
    """The folders in `cache`, the one that was used last at the front."""
    found = []
    for folder in cache.glob("[0-9a-f]*"):
        if len(folder.name) != 64 or not folder.is_dir():
            continue
        about: tuple[int, int, tuple[str, ...]] = 0, 0, ()
        with suppress(DataError):
            file = ImageSetFile.load(folder)
            about = file.size, len(file.identities), tuple(file.domains)
        with suppress(OSError):  # another process may be removing it
            total = sum(path.stat().st_size for path in folder.iterdir())
            found.append(CachedSet(folder, *about, total, folder.stat().st_mtime))
    return sorted(found, key=lambda each: -each.last_used)


def remove_cached(cache: Path, chosen: CachedSet) -> bool:
    """Remove a folder; False where another process is writing it; raises `OutputError`."""
    try:
        with folder_lock(cache, chosen.folder.name, timeout=0.0):
            shutil.rmtree(chosen.folder)
    except Timeout:
        return False
    except OSError as error:
        raise OutputError(
            f"cannot remove {chosen.folder}: {error.strerror}; check its permissions"
        ) from error
    return True
