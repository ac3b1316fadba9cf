"""Every random number of the project comes from a named seed, through an explicit generator."""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for one purpose: sha256 of "seed/name/name/…".

    Purposes with different names are independent of each other and of the order in which they
    are asked for, so nothing random has to be stored to resume a run.

    >>> derive_seed(0, "batches", "sketch") == derive_seed(0, "batches", "photo")
    False
    """
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def named_generator(seed: int, *names: str | int) -> "torch.Generator":
    """A generator on the CPU seeded with `derive_seed(seed, *names)`."""
    import torch  # reports, which only read, derive seeds too

    return torch.Generator().manual_seed(derive_seed(seed, *names))
