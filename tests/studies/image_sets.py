"""Image sets made of arrays."""

from collections.abc import Sequence

import numpy as np

from gradsurgery.data import ImageSet


def image_set(
    domain: Sequence[int], label: Sequence[int], *, side: int = 4, seed: int = 0
) -> ImageSet:
    """Random images; image i is of domain `domain[i]` and class `label[i]`."""
    random = np.random.default_rng(seed)
    domains = tuple(f"d{i}" for i in range(max(domain) + 1))
    classes = tuple(f"c{i}" for i in range(max(label) + 1))
    named = enumerate(zip(domain, label, strict=True))
    return ImageSet(
        name="made",
        domains=domains,
        classes=classes,
        images=random.integers(0, 256, (len(domain), side, side, 3), dtype=np.uint8),
        identities=tuple(f"{domains[d]}/{classes[c]}/{i}" for i, (d, c) in named),
        domain=np.array(domain),
        label=np.array(label),
        size=side,
        digest="made",
    )
