"""Every random number of the project comes from a named seed, through an explicit generator."""

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

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


def random_order(count: int, seed: int, *names: str | int) -> NDArray[np.int64]:
    """The numbers from 0 to `count` - 1 in an order drawn from `named_generator(seed, *names)`."""
    import torch

    generator = named_generator(seed, *names)
    order: NDArray[np.int64] = torch.randperm(count, generator=generator, device="cpu").numpy()
    return order
