"""Decoding all images of a source, in parallel, into one file."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradsurgery.data.decode import BadImageError
from gradsurgery.data.entry import allocate, write_meta
from gradsurgery.data.source import Source, check_complete, select
from gradsurgery.errors import DataError

Progress = Callable[[int, int], None]
IN_FLIGHT = 4
"""Encoded images in memory for each worker."""


class Decoding:
    """Decodes the images of `source` at `size`, whose encoded bytes must have the `hashes`."""

    def __init__(
        self,
        source: Source,
        size: int,
        hashes: Sequence[bytes],
        skip_bad: bool,
        progress: Progress | None,
    ) -> None:
        self.source = source
        self.size = size
        self.hashes = hashes
        self.skip_bad = skip_bad
        self.progress = progress
        self.bad: dict[int, str] = {}
        self._done = 0

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
            check_complete(
                f"{self.source.name} without {len(self.bad)} bad images",
                select(self.source.listing, kept),
            )
            for to, position in enumerate(kept):
                pixels[to] = pixels[position]
        pixels.flush()
        del pixels
        os.truncate(path, len(kept) * image)
        write_meta(folder, digest, self.size, self.source, self.bad)

    def _fill(self, pixels: NDArray[np.uint8], workers: int) -> None:
        """Decode in threads, which Pillow lets run at once; look at results in storage order.

        So the bad image named is the first one, whatever the number of workers.
        """
        pending: deque[Future[tuple[int, str | None]]] = deque()
        with ThreadPoolExecutor(workers) as pool:
            try:
                for position, content in self.source.contents():
                    if len(pending) == IN_FLIGHT * workers:
                        self._look_at(*pending.popleft().result())
                    pending.append(pool.submit(self._decode, pixels, position, content))
                while pending:
                    self._look_at(*pending.popleft().result())
            finally:
                pool.shutdown(cancel_futures=True)

    def _decode(
        self, pixels: NDArray[np.uint8], position: int, content: bytes
    ) -> tuple[int, str | None]:
        """Decode one image into its place; returns why that cannot be done, or None."""
        if hashlib.sha256(content).digest() != self.hashes[position]:
            raise DataError(
                f"{self.source.location(position)} changed while it was read; repeat when nothing "
                "else writes to the data set"
            )
        try:
            pixels[position] = self.source.decode(position, content, self.size)
        except BadImageError as error:
            return position, str(error)
        return position, None

    def _look_at(self, position: int, reason: str | None) -> None:
        if reason is not None:
            if not self.skip_bad:
                raise bad_image(self.source, position, reason)
            self.bad[position] = reason
        self._done += 1
        if self.progress is not None:
            self.progress(self._done, len(self.hashes))


def bad_image(source: Source, position: int, reason: str) -> DataError:
    """The error for an image that cannot be decoded."""
    return DataError(
        f"cannot decode {source.location(position)}: {reason}; replace or remove it, or leave such "
        "images out with --skip-bad (skip_bad=True)"
    )
