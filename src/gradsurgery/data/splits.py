"""Every domain's images, divided into training, validation and test images."""

import hashlib
import itertools
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gradsurgery.data.image_set import ImageSet
from gradsurgery.documents.record import SplitFile
from gradsurgery.errors import ArgumentError, DataError
from gradsurgery.seeds import named_generator

Indices = NDArray[np.int64]
PARTS = ("train", "validation", "test")
_OTHER_NAMES = {
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "crossval": "validation",
    "testing": "test",
}


@dataclass(frozen=True, eq=False)
class Split:
    """Which images of each domain are for training, validation and test.

    train, validation, test: per domain, positions in the image set, in the order of identities.
    digest: sha256 of the identities in every part; where all images of a target are tested on, of
        the split without that, which all targets share.
    seed: what the split was drawn from.
    identities: of the images in every part of every domain.
    unused: identities of images in no part.
    """

    train: dict[str, Indices]
    validation: dict[str, Indices]
    test: dict[str, Indices]
    digest: str
    seed: int
    identities: dict[str, dict[str, list[str]]]
    unused: tuple[str, ...] = ()

    def sizes(self) -> dict[str, dict[str, int]]:
        """Number of images of each domain and part."""
        return {
            domain: {part: len(names) for part, names in parts.items()}
            for domain, parts in self.identities.items()
        }

    def save(self, folder: Path) -> None:
        """Write `split.json`, with the identities of the images, into `folder`."""
        SplitFile(seed=self.seed, digest=self.digest, domains=self.identities).save(folder)


def draw_split(
    images: ImageSet,
    seed: int = 0,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    *,
    without: Collection[int] = (),
) -> Split:
    """Divide every domain's images at random, stratified by class.

    fractions: of training, validation and test images; they sum to 1.
    without: positions of images that are in no part.

    Each class of each domain is divided by the method of the largest remainder (see
    `part_sizes`), with a generator of its own: a domain's split depends neither on the other
    domains nor on the order in which images are listed.
    """
    exact = check_fractions(fractions)
    parts: list[str | None] = [None] * len(images.identities)
    for d, domain in enumerate(images.domains):
        for c, label in enumerate(images.classes):
            members = np.flatnonzero((images.domain == d) & (images.label == c)).tolist()
            members = sorted(set(members) - set(without), key=images.identities.__getitem__)
            generator = named_generator(seed, "split", domain, label)
            order = iter(torch.randperm(len(members), generator=generator).tolist())
            for part, size in zip(PARTS, part_sizes(len(members), exact), strict=True):
                for i in itertools.islice(order, size):
                    parts[members[i]] = part
    return as_split(images, parts, seed)


def as_split(images: ImageSet, parts: Sequence[str | None], seed: int = 0) -> Split:
    """The split that has each image in the part of its name; None stands for none of them."""
    indices: dict[str, dict[str, Indices]] = {part: {} for part in PARTS}
    domain_of = images.domain.tolist()
    ordered = sorted(range(len(parts)), key=images.identities.__getitem__)
    for d, domain in enumerate(images.domains):
        members = [i for i in ordered if domain_of[i] == d]
        for part in PARTS:
            chosen = [i for i in members if parts[i] == part]
            indices[part][domain] = np.array(chosen, dtype=np.int64)
    identities = {
        domain: {part: [images.identities[i] for i in indices[part][domain]] for part in PARTS}
        for domain in images.domains
    }
    unused = tuple(images.identities[i] for i in ordered if parts[i] is None)
    digest = hashlib.sha256(json.dumps(identities, sort_keys=True).encode()).hexdigest()
    return Split(**indices, digest=digest, seed=seed, identities=identities, unused=unused)


def part_sizes(count: int, fractions: tuple[Fraction, ...]) -> list[int]:
    """Divide `count` images by the method of the largest remainder.

    Every part gets floor(count * fraction), what is left goes one each to the largest remainders,
    ties to the earlier part. A class always gets a training image;
    from three images on every part with a fraction above 0 gets at least one, from the largest.
    """
    quotas = [count * fraction for fraction in fractions]
    sizes = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (sizes[i] - quotas[i], i))
    for i in by_remainder[: count - sum(sizes)]:
        sizes[i] += 1
    required = [i for i, f in enumerate(fractions) if f > 0] if count >= 3 else [0][:count]
    for i in required:
        if sizes[i] == 0:
            sizes[sizes.index(max(sizes))] -= 1
            sizes[i] = 1
    return sizes


def check_fractions(fractions: Sequence[float]) -> tuple[Fraction, ...]:
    """The fractions as exact numbers; `ArgumentError` where they divide nothing."""
    if (
        len(fractions) != 3
        or not all(math.isfinite(f) and f >= 0 for f in fractions)
        or fractions[0] <= 0
        or abs(sum(fractions) - 1) > 1e-9
    ):
        raise ArgumentError(
            f"fractions are {tuple(fractions)}, expected three (training above 0, "
            "validation, test) that are not negative and sum to 1, as (0.7, 0.1, 0.2)"
        )
    exact = [Fraction(f).limit_denominator(10**9) for f in fractions]
    return tuple(f / sum(exact) for f in exact)


def part_name(text: str, where: str) -> str:
    """The part that `text` means; raises `DataError` for what is none."""
    plain = text.strip().lower()
    part = _OTHER_NAMES.get(plain, plain)
    if part not in PARTS:
        raise DataError(
            f"{where}: the split is {text!r:.60}, expected train, validation (val) or test; mend it"
        )
    return part
