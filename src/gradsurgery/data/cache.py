"""Images are decoded once, and kept as pixels that every later run maps into its memory.

A cache folder holds an entry per data set and size, named by the hash of its contents; `index`
says which entry belongs to a source whose files have not changed since, so that an opening need
not read them; `locks` lets processes take turns.
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

from gradsurgery.atomic import atomic_file, atomic_folder, output_error
from gradsurgery.data.decoding import Decoding, Progress, bad_image
from gradsurgery.data.entry import (
    FORMAT,
    Entry,
    content_digest,
    content_hashes,
    read_entry,
    sync_folder,
)
from gradsurgery.data.images import ImageSet
from gradsurgery.data.locks import lock_path, locked, remove_stale
from gradsurgery.data.source import Source
from gradsurgery.errors import ArgumentError


def cache_folder(cache: Path | str | None = None) -> Path:
    """The argument, else $GRADSURGERY_CACHE, else gradsurgery in $XDG_CACHE_HOME or ~/.cache."""
    if cache is not None:
        return Path(cache).expanduser()
    if own := os.environ.get("GRADSURGERY_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gradsurgery"


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
    folder = cache_folder(cache)
    digest = _indexed(folder, source, size)
    entry = read_entry(folder / digest, digest) if digest else None
    if digest is None or entry is None:
        hashes = content_hashes(source)
        digest = content_digest(source, size, hashes)
        try:
            with locked(lock_path(folder, digest)):
                entry = read_entry(folder / digest, digest)
                if entry is None:
                    decoding = Decoding(source, size, hashes, skip_bad, progress)
                    entry = _write_entry(folder, digest, decoding, workers or _cpus())
            _write_index(folder, source, size, digest)
        except OSError as error:
            raise output_error(folder, error) from error
    if entry.skipped and not skip_bad:
        first = entry.skipped[0]
        raise bad_image(source, source.listing.identities.index(first.identity), first.reason)
    return ImageSet(
        source.name,
        source.domains,
        source.classes,
        entry.images,
        entry.identities,
        entry.domain,
        entry.label,
        size,
        digest,
        entry.skipped,
        folder / digest,
    )


def _write_entry(cache: Path, digest: str, decoding: Decoding, workers: int) -> Entry:
    """Decode into a temporary folder and rename it; the caller holds the entry's lock."""
    folder = cache / digest
    remove_stale(cache, digest)
    if folder.exists():  # damaged, or it would have been read
        shutil.rmtree(folder)
    with atomic_folder(folder) as temporary:
        decoding.write(temporary, digest, workers)
        sync_folder(temporary)
    sync_folder(cache)
    entry = read_entry(folder, digest)
    if entry is None:
        raise OSError(f"{folder} is not what was written")
    return entry


def _index_path(cache: Path, source: Source, size: int) -> Path | None:
    signature = source.signature()
    if signature is None:
        return None
    key = json.dumps([FORMAT, size, source.resize_first, signature])
    return cache / "index" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def _indexed(cache: Path, source: Source, size: int) -> str | None:
    """The entry that held these images when they were last read, None where it is not known."""
    path = _index_path(cache, source, size)
    try:
        digest = json.loads(path.read_bytes())["digest"] if path is not None else None
    # An index that is missing or damaged is made anew.
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return digest if isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) else None


def _write_index(cache: Path, source: Source, size: int, digest: str) -> None:
    path = _index_path(cache, source, size)
    if path is None:
        return
    with locked(lock_path(cache, "index")):
        for temporary in path.parent.glob(".*.tmp"):
            temporary.unlink()
        with atomic_file(path) as file:
            file.write_text(json.dumps({"digest": digest}), encoding="utf-8")


def _cpus() -> int:
    """CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
