"""From pixels to what a network takes."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from gradsurgery.errors import ArgumentError

PIECE = 150_000
"""Numbers that one thread takes through all four operations while they lie in its cache."""
MOST_THREADS = 8


def normalize(
    images: UInt8[Tensor, "batch height width 3"],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    out: Float[Tensor, "batch 3 height width"] | None = None,
) -> Float[Tensor, "batch 3 height width"]:
    """(x / 255 - mean) / std per channel, in float32, bit-equal to torchvision's transforms.

    mean, std: of the red, green and blue channel, on the scale from 0 to 1; std above 0.
    out: an earlier result for images of this shape, whose memory is written again: fresh memory
    costs a third of the time on a CPU. Only where nothing needs that result any more.
    The result lies on the images' device, channels last in memory.
    """
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ArgumentError(
            f"mean {tuple(mean)} and std {tuple(std)}: expected three numbers each, std above 0"
        )
    batch, height, width, _ = images.shape
    rows = images.reshape(batch * height, width * 3)
    # Repeated along a row, so that every operation runs over contiguous memory.
    row_mean = torch.tensor(mean, dtype=torch.float32).repeat(width)
    row_std = torch.tensor(std, dtype=torch.float32).repeat(width)
    on_cpu = images.device.type == "cpu"
    if out is None:
        # NumPy takes huge pages for its memory; torch's would take as long to touch as to fill.
        empty = (
            torch.from_numpy(np.empty(images.shape, np.float32))
            if on_cpu
            else torch.empty(images.shape, device=images.device)
        )
        out = empty.permute(0, 3, 1, 2)
    result = out.permute(0, 2, 3, 1).view(rows.shape)
    if on_cpu:
        _on_cpu(rows.numpy(), row_mean.numpy(), row_std.numpy(), result.numpy())
    else:
        result.copy_(rows).div_(255)
        result.sub_(row_mean.to(images.device)).div_(row_std.to(images.device))
    return out


def _on_cpu(
    rows: NDArray[np.uint8],
    mean: NDArray[np.float32],
    std: NDArray[np.float32],
    result: NDArray[np.float32],
) -> None:
    """The same, piece by piece, each taken by one thread from beginning to end.

    Torch's own threads would wait for one another at every operation: next to other programs
    that takes many times as long.
    """
    height = max(1, PIECE // max(1, rows.shape[1]))

    def work(start: int) -> None:
        piece = result[start : start + height]
        np.copyto(piece, rows[start : start + height])
        np.divide(piece, np.float32(255), out=piece)
        np.subtract(piece, mean, out=piece)
        np.divide(piece, std, out=piece)

    starts = range(0, len(rows), height)
    threads = min(torch.get_num_threads(), MOST_THREADS, len(starts) // 8)
    if threads < 2:
        for start in starts:
            work(start)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, starts))
