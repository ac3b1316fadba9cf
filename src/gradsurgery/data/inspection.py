"""What can be said of a data set's images without training on them."""

import hashlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from gradsurgery.data.duplicates import Places, alike, copies_among, identical_files, look_of
from gradsurgery.data.formats import BadImageError, has_several
from gradsurgery.data.selected import draws_itself
from gradsurgery.data.source import SkippedImage, Source
from gradsurgery.data.splits import part_name
from gradsurgery.documents.record import Copies
from gradsurgery.errors import DataError

_SIDE = 64  # pixels to which images are decoded for their perceptual hash
_WAITING = 64  # encoded images in memory


@dataclass(frozen=True)
class Inspection:
    """What reading every image has shown.

    identical: files that are there more than once.
    alike: images that look alike and are not the same file; None for a source that draws its own.
    bad: images that cannot be decoded; empty where they were not.
    several: files with several pictures, of which the first is used.
    """

    identical: Copies
    alike: Copies | None
    bad: tuple[SkippedImage, ...]
    several: tuple[str, ...] = ()


def inspect_images(
    source: Source,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Inspection:
    """Read and decode every image of `source` once, at a small size.

    workers: threads that decode; the result does not depend on them.
    progress: called with (images seen, images in all).

    Raises `DataError` where the storage cannot be read, or a format needs a package more.
    """
    listing = source.listing
    count = len(listing.identities)
    hashes: list[object] = [None] * count
    looks = [b""] * count
    bad: dict[int, str] = {}
    several: set[int] = set()
    decodes = not draws_itself(source)

    def look(position: int, content: bytes) -> tuple[int, bytes, str | None]:
        try:
            pixels = source.decode(position, content, _SIDE)
        except BadImageError as error:
            return position, b"", str(error)
        if has_several(content):
            several.add(position)
        return position, look_of(pixels), None

    def note(found: tuple[int, bytes, str | None]) -> None:
        position, looks[position], reason = found
        if reason is not None:
            bad[position] = reason

    pending: deque[Future[tuple[int, bytes, str | None]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for done, (position, content) in enumerate(source.contents(), start=1):
            hashes[position] = hashlib.sha256(content).digest() if content else position
            if decodes:
                pending.append(pool.submit(look, position, content))
            if len(pending) >= _WAITING:
                note(pending.popleft().result())
            progress(done, count)
        while pending:
            note(pending.popleft().result())
    places = Places(
        source.domains, listing.identities, listing.domain, listing.label, _parts(source)
    )
    good = [position for position in range(count) if position not in bad]
    pairs = alike([looks[i] for i in good], [hashes[i] for i in good])
    return Inspection(
        copies_among(identical_files(hashes), places),
        copies_among(([good[a], good[b]] for a, b in pairs), places) if decodes else None,
        tuple(SkippedImage(listing.identities[i], bad[i]) for i in sorted(bad)),
        tuple(listing.identities[i] for i in sorted(several)),
    )


def _parts(source: Source) -> list[str] | None:
    """The parts of the source's own split; None where it has none in words that are known."""
    if source.parts is None:
        return None
    try:
        return [part_name(said, source.name) if said else "" for said in source.parts]
    except DataError:
        return None
