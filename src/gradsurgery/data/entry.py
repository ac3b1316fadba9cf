"""One folder of the cache: pixels in `images.bin`, everything else in `meta.json`."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from gradsurgery.data.images import SkippedImage
from gradsurgery.data.source import Source

FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """What a valid folder of the cache holds."""

    images: NDArray[np.uint8]
    identities: tuple[str, ...]
    domain: NDArray[np.int64]
    label: NDArray[np.int64]
    skipped: tuple[SkippedImage, ...]


def content_hashes(source: Source) -> list[bytes]:
    """The sha256 of every encoded image, in the order of the listing."""
    hashes = [b""] * len(source.listing.identities)
    for position, content in source.contents():
        hashes[position] = hashlib.sha256(content).digest()
    return hashes


def content_digest(source: Source, size: int, hashes: list[bytes]) -> str:
    """The name of the entry: sha256 of all that its pixels and labels follow from."""
    description = {
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


def write_meta(folder: Path, digest: str, size: int, source: Source, bad: dict[int, str]) -> None:
    """Describe the images of `folder`, of which those in `bad` are missing."""
    listing = source.listing
    kept = [i for i in range(len(listing.identities)) if i not in bad]
    meta = {
        "format": FORMAT,
        "digest": digest,
        "size": size,
        "domains": listing.domains,
        "classes": listing.classes,
        "identities": [listing.identities[i] for i in kept],
        "domain": listing.domain[kept].tolist(),
        "label": listing.label[kept].tolist(),
        "skipped": [[listing.identities[i], reason] for i, reason in sorted(bad.items())],
    }
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def read_entry(folder: Path, digest: str) -> Entry | None:
    """The entry in `folder`, None where there is none or it is damaged."""
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_bytes())
        size, count = meta["size"], len(meta["identities"])
        if meta["format"] != FORMAT or meta["digest"] != digest:
            return None
        pixels = folder / "images.bin"
        if pixels.stat().st_size != count * size * size * 3:
            return None
        entry = Entry(
            np.memmap(pixels, np.uint8, "r", shape=(count, size, size, 3)),
            tuple(meta["identities"]),
            np.array(meta["domain"], dtype=np.int64),
            np.array(meta["label"], dtype=np.int64),
            tuple(SkippedImage(identity, reason) for identity, reason in meta["skipped"]),
        )
    # Any of these means that the folder is missing or damaged: it is made anew.
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return entry if len(entry.domain) == len(entry.label) == count else None


def sync_folder(folder: Path) -> None:
    """Flush a folder and the files right in it to the disk."""
    for path in [*(path for path in folder.iterdir() if path.is_file()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
