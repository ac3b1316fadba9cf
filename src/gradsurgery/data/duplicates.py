"""Images that are in a data set more than once: identical files, and pictures that look alike.

And what else reading every image shows, without training on it.
"""

import hashlib
import itertools
from base64 import b64decode, b64encode
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gradsurgery.data.derived import decoder_of
from gradsurgery.data.formats import BadImageError, dark_sentences, has_16_bits, has_several
from gradsurgery.data.groups import shared_groups
from gradsurgery.data.image_set import ImageSet
from gradsurgery.data.loader import worked_on
from gradsurgery.data.source import Listing, SkippedImage, Source
from gradsurgery.data.splits import Split, part_name
from gradsurgery.documents.document import Document
from gradsurgery.documents.record import Copies
from gradsurgery.errors import DataError, OutputError

NEAR = 4
"""Of the 64 bits of a perceptual hash, how many differ at most between pictures that look alike."""
CORRELATED = 0.97
"""The correlation of 16x16 gray values from which on pictures look alike."""
LEAST_SIDE = 32
"""Pixels of a side below which pictures of any kind look alike."""
INSPECTED_SIDE = 64
"""Pixels of a side at which `inspect_images` compares them; a run, as large as it takes them."""
_EXAMPLES = 10
_GRAY = 16
_LOOK = 8 + _GRAY**2  # bytes of a perceptual hash, and of gray values
_DARK = 32  # an eighth of the gray values there are: 13 bits, in a file of 16
_WAITING = 64  # encoded images in memory meanwhile

Groups = list[list[int]]


def identical_files(hashes: Sequence[Any]) -> Groups:
    """The positions of each file that is there more than once; the groups by their first."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for position, found in enumerate(hashes):
        groups[found].append(position)
    return [group for group in groups.values() if len(group) > 1]


def file_hashes(images: ImageSet) -> Sequence[Any]:
    """What tells the files of `images` apart; of a set whose files are not known, its pixels."""
    if images.hashes:
        return images.hashes
    return [hashlib.sha256(pixels.tobytes()).digest() for pixels in images.images]


def dropped(images: ImageSet) -> frozenset[int]:
    """Positions of the images that `drop_duplicates` leaves out.

    Of identical files the first in the order of domain, class and name stays; where their classes
    differ none does, since nobody knows which is right.
    """
    left_out: set[int] = set()
    for group in identical_files(file_hashes(images)):
        contradictory = len({int(images.label[i]) for i in group}) > 1
        left_out.update(group if contradictory else group[1:])
    return frozenset(left_out)


def copies_among(
    groups: Iterable[Sequence[int]], images: ImageSet | Listing, part: Sequence[str]
) -> Copies:
    """What groups of images that are the same picture mean for training and testing on them.

    part: the part that each image is used in, "" where it is in none.
    """
    found = Copies()
    shared: Counter[tuple[int, int]] = Counter()
    telling: list[tuple[int, list[str]]] = []
    for group in groups:
        domains = sorted({int(images.domain[i]) for i in group})
        classes = {int(images.label[i]) for i in group}
        parts = {part[i] for i in group} - {""}
        found.images += len(group)
        found.across_classes += len(classes) > 1
        found.across_parts += "train" in parts and len(parts) > 1
        shared.update(itertools.combinations(domains, 2))
        weight = 2 * (len(classes) > 1) + (len(domains) > 1)
        telling.append((-weight, [images.identities[i] for i in group]))
    found.across_domains = {
        f"{images.domains[a]} and {images.domains[b]}": n for (a, b), n in sorted(shared.items())
    }
    telling.sort()
    found.examples = [names[:4] for _, names in telling[:_EXAMPLES]]
    return found


def look_of(pixels: NDArray[np.uint8]) -> bytes:
    """What an image looks like, in 264 bytes: its perceptual hash, and it in 16x16 gray values.

    The hash is imagehash's `phash`, which hardly changes with size, brightness and compression.
    """
    import imagehash

    image = Image.fromarray(pixels)
    gray = image.convert("L").resize((_GRAY, _GRAY), Image.Resampling.BILINEAR)
    return np.packbits(imagehash.phash(image).hash).tobytes() + gray.tobytes()


def alike(looks: Sequence[bytes], hashes: Sequence[Any]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of positions that look alike and are not the same file.

    The perceptual hashes differ in `NEAR` bits or fewer, and the gray values have a correlation of
    `CORRELATED` or more: the hash alone takes one line drawing for another.

    looks: of `look_of`. Of several files with the same hash the first stands for all, but for a
    pair with each of the others, so that a thousand similar pages are no million of pairs.
    """
    standing: dict[bytes, dict[Any, int]] = defaultdict(dict)
    for position, look in enumerate(looks):
        standing[look[:8]].setdefault(hashes[position], position)
    firsts = []
    for files in standing.values():
        first, *others = files.values()
        firsts.append(first)
        yield from ((first, other) for other in others if _correlated(looks[first], looks[other]))
    numbers = np.array([int.from_bytes(look, "big") for look in standing], dtype=np.uint64)
    for one, two in sorted(_close_pairs(numbers)):
        a, b = firsts[one], firsts[two]
        if hashes[a] != hashes[b] and _correlated(looks[a], looks[b]):
            yield min(a, b), max(a, b)


def look_alikes(looks: Sequence[bytes], hashes: Sequence[Any], among: Sequence[int]) -> Groups:
    """The groups that the pairs of `alike` hang together in, of the positions `among`."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = np.array(
        [*alike([looks[i] for i in among], [hashes[i] for i in among])], dtype=np.int32
    )
    if not len(pairs):
        return []
    graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(len(among), len(among)))
    of_component = identical_files(connected_components(graph, directed=False)[1].tolist())
    return [[among[i] for i in group] for group in of_component]


def _correlated(first: bytes, second: bytes) -> bool:
    a, b = (np.frombuffer(look, np.uint8, offset=8).astype(np.float64) for look in (first, second))
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return bool(a @ b >= CORRELATED * size)


def _close_pairs(looks: NDArray[np.uint64]) -> set[tuple[int, int]]:
    """The pairs of positions whose bits differ in `NEAR` places or fewer.

    Of NEAR + 1 pieces of the bits one at least is equal then: only such are compared.
    """
    found: set[tuple[int, int]] = set()
    edges = [64 * piece // (NEAR + 1) for piece in range(NEAR + 2)]
    for low, high in itertools.pairwise(edges):
        pieces = (looks >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(pieces, kind="stable")
        starts = np.flatnonzero(np.diff(pieces[order])) + 1
        for members in np.split(order, starts):
            for number, member in enumerate(members[:-1]):
                others = members[number + 1 :]
                bits = (looks[others] ^ looks[member])[:, None].view(np.uint8)
                differing = np.unpackbits(bits, axis=1).sum(axis=1)
                found.update(
                    (int(min(member, other)), int(max(member, other)))
                    for other in others[differing <= NEAR]
                )
    return found


class LooksFile(Document):
    """What the images of a folder look like, in their order, in base 64."""

    file_name: ClassVar[str] = "looks.json"
    title: ClassVar[str] = "list of what images look like"
    cure: ClassVar[str] = "delete it"

    looks: list[str]


def looks_of(images: ImageSet) -> list[bytes] | None:
    """What `images` look like, kept beside them; None where they are too small to tell."""
    if images.size < LEAST_SIDE:
        return None
    if images.folder is not None:
        with suppress(DataError, ValueError):
            written = [b64decode(look) for look in LooksFile.load(images.folder).looks]
            if [len(look) for look in written] == [_LOOK] * len(images.identities):
                return written
    looks = [look_of(pixels) for pixels in images.images]
    if images.folder is not None:
        with suppress(OutputError):  # a cache that others may only read
            LooksFile(looks=[b64encode(look).decode() for look in looks]).save(images.folder)
    return looks


def copies_in_run(
    images: ImageSet,
    looks: Sequence[bytes] | None,
    split: Split,
    sources: Sequence[str],
    target: str | None,
) -> tuple[Copies, Copies | None]:
    """The pictures that a run uses more than once: identical files, and images that look alike.

    The latter is None for images too small to tell, as `looks` of `looks_of` is. Used are the
    training and validation images of the sources, and all test images.
    """
    part = [""] * len(images.identities)
    for name, of_domains in (("test", images.domains), ("validation", sources), ("train", sources)):
        for domain in of_domains:
            for position in getattr(split, name)[domain].tolist():
                part[position] = name
    of_target = -1 if target is None else images.domains.index(target)
    hashes = file_hashes(images)
    used = [i for i, name in enumerate(part) if name]

    def copies(groups: Groups) -> Copies:
        found = copies_among(groups, images, part)
        learned = [group for group in groups if any(part[i] == "train" for i in group)]
        tested = {i for group in learned for i in group if part[i] == "test"}
        found.of_target = sum(int(images.domain[i]) == of_target for i in tested)
        return found

    same = identical_files([hashes[i] for i in used])
    identical = copies([[used[i] for i in group] for group in same])
    return identical, None if looks is None else copies(look_alikes(looks, hashes, used))


def doubts_of(images: ImageSet, looks: Sequence[bytes] | None) -> list[str]:
    """What else makes results on `images` doubtful: black images, groups in several domains.

    looks: of `looks_of`.
    """
    grays = np.frombuffer(b"".join(looks or ()), np.uint8).reshape(-1, _LOOK)[:, 8:]
    dim = (grays.max(1) < _DARK).nonzero()[0].tolist()
    dark = [images.identities[i] for i in dim if images.images[i].max() < _DARK]
    pairs = zip(images.domain.tolist(), images.groups or (), strict=images.groups is not None)
    shared = shared_groups((images.domains[d], group) for d, group in pairs)
    return [*dark_sentences(dark), *shared]


@dataclass(frozen=True)
class Inspection:
    """What reading every image has shown.

    identical: files that are there more than once.
    alike: images that look alike and are not the same file; None for a source that draws its own.
    bad: images that cannot be decoded; empty where they were not.
    several: files with several pictures, of which the first is used.
    dark: images that are black or nearly so all over.
    unstretched: those of them whose files have 16 bits, of which they may use 12.
    """

    identical: Copies
    alike: Copies | None
    bad: tuple[SkippedImage, ...]
    several: tuple[str, ...] = ()
    dark: tuple[str, ...] = ()
    unstretched: tuple[str, ...] = ()


def inspect_images(
    source: Source,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Inspection:
    """Read and decode every image of `source` once, at a small size.

    workers: threads that decode; the result does not depend on them.
    progress: called with (images seen, images in all).

    Raises `DataError` where the storage cannot be read, or a format needs another package.
    """
    listing = source.listing
    count = len(listing.identities)
    hashes: list[object] = [None] * count
    looks = [b""] * count
    bad: dict[int, str] = {}
    several: set[int] = set()
    dark: dict[int, bool] = {}  # and whether of 16 bits
    decodes = decoder_of(source) is None

    def inspect(position: int, content: bytes) -> None:
        hashes[position] = hashlib.sha256(content).digest() if content else position
        if not decodes:
            return
        try:
            pixels = source.decode(position, content, INSPECTED_SIDE)
        except BadImageError as error:
            bad[position] = str(error)
        else:
            looks[position] = look_of(pixels)
            if has_several(content):
                several.add(position)
            if pixels.max() < _DARK:
                dark[position] = has_16_bits(content)

    seen = worked_on(source.contents(), inspect, workers=workers, ahead=_WAITING)
    for done, _ in enumerate(seen, start=1):
        progress(done, count)
    part = _parts(source)
    good = [position for position in range(count) if position not in bad]
    places = tuple(map(source.location, range(count)))  # where somebody would look at them
    found = replace(listing, identities=places)
    return Inspection(
        copies_among(identical_files(hashes), found, part),
        copies_among(look_alikes(looks, hashes, good), found, part) if decodes else None,
        tuple(SkippedImage(places[i], bad[i]) for i in sorted(bad)),
        tuple(places[i] for i in sorted(several)),
        tuple(places[i] for i in sorted(dark)),
        tuple(places[i] for i in sorted(dark) if dark[i]),
    )


def _parts(source: Source) -> list[str]:
    """The parts of the source's own split; "" where it has none in words that are known."""
    none = [""] * len(source.listing.identities)
    try:
        return [part_name(said, source.name) if said else "" for said in source.parts or none]
    except DataError:
        return none
