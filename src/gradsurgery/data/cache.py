"""Images are decoded once, and kept as pixels that every later run maps into its memory.

A cache folder holds a folder per data set and size, named by the hash of its contents; `index`
says which one belongs to a source whose files have not changed since, so that an opening need
not read them; `places` which one belongs to the place that they lie in, where what they were before
makes room for what they are now; `locks` lets processes take turns.
"""

import hashlib
import inspect
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from filelock import Timeout
from numpy.typing import NDArray
from PIL import Image

from gradsurgery.atomic import atomic_folder, output_error, write_text
from gradsurgery.data.derived import innermost
from gradsurgery.data.formats import BadImageError
from gradsurgery.data.image_set import (
    FORMAT,
    ImageSet,
    allocate,
    cache_folder,
    content_digest,
    content_hashes,
    folder_lock,
    read_image_set,
    sync_folder,
    write_meta,
)
from gradsurgery.data.loader import worked_on
from gradsurgery.data.source import Source
from gradsurgery.errors import ArgumentError, DataError, OutputError

Progress = Callable[[int, int], None]
IN_FLIGHT = 4
"""Encoded images in memory for each worker."""


def prepare(  # noqa: PLR0917
    source: Source,
    size: int = 224,
    cache: Path | str | None = None,
    workers: int | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> ImageSet:
    """Decode the images of `source` into the cache, or open what is already there.

    size: side of the square images, pixels, at least 1.
    cache: the cache's folder; see `cache_folder` for the default.
    workers: threads that decode, by default one a CPU; the result does not depend on them.
    skip_bad: leave out images that cannot be decoded and list them in `ImageSet.skipped`.
    progress: called with (images decoded, images in all); not called where nothing is decoded.

    Raises `DataError` naming the first image that cannot be decoded (without `skip_bad`), and
    `OutputError` where the cache cannot be written, which then holds nothing half written.
    """
    if size < 1:
        raise ArgumentError(f"image size is {size}, expected a number of pixels of at least 1")
    if workers is not None and workers < 1:
        raise ArgumentError(f"workers is {workers}, expected a number of threads of at least 1")
    source.check_complete()
    folder, decoder = cache_folder(cache), _own_decoder(source)
    index = _index_path(folder / "index", source.signature(), source, size, decoder)
    place = _index_path(folder / "places", source.place(), source, size, decoder)
    images = _listed(folder, index, source)
    if images is None:
        hashes = content_hashes(source)
        digest = content_digest(source, size, hashes, decoder)
        images = read_image_set(folder, digest, source)  # also where it may only be read
        if images is None:
            try:
                with folder_lock(folder, digest):
                    images = read_image_set(folder, digest, source)
                    if images is None:
                        earlier = read_image_set(folder, _indexed(place), source)
                        decoding = _Decoding(source, size, hashes, skip_bad, progress, earlier)
                        images = _write_images(folder, digest, decoding, workers or cpus())
            except (OSError, OutputError) as error:
                said = output_error(folder, error) if isinstance(error, OSError) else error
                named = "the cache is named by --cache or $GRADSURGERY_CACHE"
                raise OutputError(f"{said}; {named}") from error
        _note_index(folder, index, digest)
    _take_place(folder, place, images.digest)
    with suppress(OSError):  # where others' images may only be read
        os.utime(folder / images.digest)  # what `data cache` takes for its last use
    if images.skipped and not skip_bad:
        first = images.skipped[0]
        raise bad_image(source, source.listing.identities.index(first.identity), first.reason)
    return images


def digest_of(source: Source, size: int, cache: Path | str | None = None) -> str:
    """The digest of the set that `prepare` gives; where the cache does not know, images are read.

    Nothing is decoded. Raises `DataError` where images cannot be read.
    """
    folder, decoder = cache_folder(cache), _own_decoder(source)
    index = _index_path(folder / "index", source.signature(), source, size, decoder)
    if (images := _listed(folder, index, source)) is not None:
        return images.digest
    digest = content_digest(source, size, content_hashes(source), decoder)
    if (folder / digest).exists():  # of files that were touched
        _note_index(folder, index, digest)
    return digest


def _listed(folder: Path, index: Path | None, source: Source) -> ImageSet | None:
    """The decoded images that the index names, if they are called as the source lists them now.

    Names, domains and classes may change while no image does, and no signature tell of it.
    """
    images = read_image_set(folder, _indexed(index), source)
    if images is None:
        return None
    listing, skipped = source.listing, {image.identity for image in images.skipped}
    kept = [i for i, identity in enumerate(listing.identities) if identity not in skipped]
    is_listed = (
        images.identities == tuple(listing.identities[i] for i in kept)
        and np.array_equal(images.domain, listing.domain[kept])
        and np.array_equal(images.label, listing.label[kept])
    )
    return images if is_listed else None


def _own_decoder(source: Source) -> str | None:
    """What tells the versions of a user's own `decode` apart: the text of its module."""
    owner = type(innermost(source))
    method = owner.decode
    if method.__module__.startswith("gradsurgery."):
        return None
    try:
        text = inspect.getsource(inspect.getmodule(method) or method)
    except (OSError, TypeError) as error:
        raise DataError(
            f"the text of {owner.__qualname__}.decode is not to be found, so that nothing "
            "tells whether decoded images are still right; write the class in a file of its own"
        ) from error
    return hashlib.sha256(text.encode()).hexdigest()


def _write_images(cache: Path, digest: str, decoding: "_Decoding", workers: int) -> ImageSet:
    """Decode into a temporary folder and rename it; the caller holds its lock."""
    folder = cache / digest
    _remove_stale(cache, digest)
    if folder.exists():  # damaged, or it would have been read
        shutil.rmtree(folder)
    with atomic_folder(folder) as temporary:
        decoding.write(temporary, digest, workers)
        sync_folder(temporary)
    sync_folder(cache)
    images = read_image_set(cache, digest, decoding.source)
    if images is None:
        raise OSError(f"{folder} is not what was written")
    return images


def _remove_stale(cache: Path, own: str) -> None:
    """Remove what killed processes left behind; `own` is the folder whose lock the caller holds."""
    for temporary in cache.glob(".*.tmp"):
        digest = temporary.name.split(".")[1]
        held = nullcontext() if digest == own else folder_lock(cache, digest, timeout=0.0)
        with suppress(Timeout), held:  # it times out where somebody is writing
            shutil.rmtree(temporary, ignore_errors=True)


def _index_path(
    folder: Path, text: str | None, source: Source, size: int, decoder: str | None
) -> Path | None:
    if text is None:
        return None
    also = [decoder, None if source.resize == "squash" else source.resize]
    key = json.dumps([FORMAT, size, source.resize_first, text, *filter(None, also)])
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()}.txt"


def _indexed(path: Path | None) -> str | None:
    """The folder that held these images when they were last read, None where it is not known."""
    try:
        digest = "" if path is None else path.read_text(encoding="ascii")
    except (OSError, ValueError):  # missing or damaged, it is made anew
        return None
    return digest if re.fullmatch("[0-9a-f]{64}", digest) else None


def _note_index(cache: Path, path: Path | None, digest: str) -> None:
    """Note that these are the images of a source as it is now, where that can be written."""
    if path is not None:
        with suppress(OSError, OutputError):  # without it the next opening reads all images
            _write_index(cache, path, digest)


def _write_index(cache: Path, path: Path, digest: str) -> None:
    with folder_lock(cache, "index"):
        for temporary in path.parent.glob(".*.tmp"):
            temporary.unlink()
        write_text(path, digest)


def _take_place(cache: Path, place: Path | None, digest: str) -> None:
    """Note that these are the images of a place now; those that were there before are removed."""
    before = _indexed(place)
    if place is None or before == digest:
        return
    with suppress(OSError, OutputError, Timeout):  # where others' images may only be read
        _write_index(cache, place, digest)
        if before and before not in map(_indexed, place.parent.glob("*.txt")):
            with folder_lock(cache, before, timeout=0.0):
                shutil.rmtree(cache / before)


def cpus() -> int:
    """CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass
class _Decoding:
    """Decodes the images of `source` at `size`, whose encoded bytes must have the `hashes`.

    earlier: the images that were there before, decoded alike: their pixels are copied.
    """

    source: Source
    size: int
    hashes: Sequence[bytes]
    skip_bad: bool
    progress: Progress | None
    earlier: ImageSet | None
    bad: dict[int, str] = field(default_factory=dict)

    def write(self, folder: Path, digest: str, workers: int) -> None:
        """Write `images.bin` and `meta.json`.

        Raises `DataError` for a bad image without `skip_bad`, and where nothing of a class
        remains with it.
        """
        path = folder / "images.bin"
        count = len(self.hashes)
        image = self.size * self.size * 3
        with path.open("wb") as file:
            allocate(file, count * image)
        pixels = np.memmap(path, np.uint8, "r+", shape=(count, self.size, self.size, 3))
        self._fill(pixels, workers)
        kept = [i for i in range(count) if i not in self.bad]
        if self.bad:
            self.source.check_complete(self.bad)
            for to, position in enumerate(kept):
                pixels[to] = pixels[position]
        pixels.flush()
        del pixels
        os.truncate(path, len(kept) * image)
        write_meta(folder, digest, self.size, self.source, bad=self.bad, hashes=self.hashes)

    def _fill(self, pixels: NDArray[np.uint8], workers: int) -> None:
        """Decode in threads, which Pillow lets run at once; look at results in storage order.

        So the bad image named is the first one, whatever the number of workers.
        """
        earlier = () if self.earlier is None else self.earlier.hashes
        known = {bytes.fromhex(text): row for row, text in enumerate(earlier)}
        decoded = worked_on(
            self.source.contents(),
            partial(self._decode, pixels, known),
            workers=workers,
            ahead=IN_FLIGHT * workers,
        )
        with closing(decoded), warnings.catch_warnings():
            # Of images that are large, and not too large.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            for done, (position, reason) in enumerate(decoded, start=1):
                if reason is not None:
                    if not self.skip_bad:
                        raise bad_image(self.source, position, reason)
                    self.bad[position] = reason
                if self.progress is not None:
                    self.progress(done, len(self.hashes))

    def _decode(
        self, pixels: NDArray[np.uint8], known: dict[bytes, int], position: int, content: bytes
    ) -> tuple[int, str | None]:
        """Decode one image into its place; returns why that cannot be done, or None."""
        if hashlib.sha256(content).digest() != self.hashes[position]:
            raise DataError(
                f"{self.source.location(position)} changed while it was read; repeat when nothing "
                "else writes to the data set"
            )
        row = known.get(self.hashes[position])
        if self.earlier is not None and row is not None:
            pixels[position] = self.earlier.images[row]
            return position, None
        try:
            image = self.source.decode(position, content, self.size)
        except BadImageError as error:
            return position, str(error)
        if image.shape != pixels.shape[1:] or image.dtype != np.uint8:
            raise DataError(
                f"{self.source.name} decodes {self.source.location(position)} to {image.dtype} "
                f"{list(image.shape)}, expected uint8 {list(pixels.shape[1:])}; mend its `decode`"
            )
        pixels[position] = image
        return position, None


def bad_image(source: Source, position: int, reason: str) -> DataError:
    """The error for an image that cannot be decoded."""
    return DataError(
        f"cannot decode {source.location(position)}: {reason}; replace or remove it, or leave such "
        "images out with --skip-bad (skip_bad=True)"
    )
