"""Pictures are decoded in threads while the network computes on those before."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import UInt8

from gradsurgery.data import BadImageError

Key = TypeVar("Key")
Decoded = UInt8[np.ndarray, "size size 3"]
Job = tuple[Key, Callable[[], Decoded]]

_AHEAD = 2  # batches of decoded pictures that may wait


@dataclass(frozen=True)
class Prepared(Generic[Key]):
    """Decoded pictures that follow one another, `keys` of them; `bad` those between, and why."""

    keys: list[Key]
    pixels: UInt8[np.ndarray, "batch size size 3"]
    bad: list[tuple[Key, str]]


def prepared(
    jobs: Iterable[Job[Key]], size: int, batch: int, workers: int
) -> Iterator[Prepared[Key]]:
    """Do the jobs, `workers` at a time, and yield what they give, in their order, in batches.

    A job that raises `BadImageError` is in `bad`. At most so many pictures are in memory as three
    batches have, however many jobs there are.
    """
    pending: deque[tuple[Key, Future[Decoded]]] = deque()
    keys: list[Key] = []
    bad: list[tuple[Key, str]] = []
    pixels = np.empty((batch, size, size, 3), dtype=np.uint8)

    def take() -> None:
        key, future = pending.popleft()
        try:
            pixels[len(keys)] = future.result()
            keys.append(key)
        except BadImageError as error:
            bad.append((key, str(error)))

    with ThreadPoolExecutor(workers, thread_name_prefix="pictures") as pool:
        try:
            for key, job in jobs:
                if len(pending) == _AHEAD * batch:
                    take()
                pending.append((key, pool.submit(job)))
                if len(keys) == batch:
                    yield Prepared(keys, pixels, bad)
                    keys, bad, pixels = [], [], np.empty_like(pixels)
            while pending:
                take()
                if len(keys) == batch or not pending:
                    yield Prepared(keys, pixels[: len(keys)], bad)
                    keys, bad, pixels = [], [], np.empty_like(pixels)
        finally:
            pool.shutdown(cancel_futures=True)
