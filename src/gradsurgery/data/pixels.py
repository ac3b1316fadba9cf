"""Pixels, and what a network takes of them: the same bits everywhere."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from gradsurgery.errors import ArgumentError
from gradsurgery.kernels import network
from gradsurgery.kernels.compiled import in_spans, library, look_up_rgb

PIECE = 20_000
"""Pixels that are worth a thread, and whose three channels are gone through in the cache."""
_COPIED = 1 << 20  # bytes that are worth a thread


def gather(
    images: NDArray[np.uint8], indices: NDArray[np.int64]
) -> UInt8[Tensor, "batch height width 3"]:
    """Copy the images at `indices` out of the memory map."""
    # Into NumPy's memory, which lies in huge pages: a quarter of the time of torch's.
    batch = np.empty((len(indices), *images.shape[1:]), dtype=np.uint8)
    np.take(images, indices, axis=0, out=batch, mode="clip")
    return torch.from_numpy(batch)


def gather_into(
    pinned: UInt8[Tensor, "batch height width 3"],
    images: NDArray[np.uint8],
    indices: NDArray[np.int64],
) -> None:
    """The same into memory that is there, on several threads."""
    out = pinned.numpy()

    def take(begin: int, end: int) -> None:
        np.take(images, indices[begin:end], axis=0, out=out[begin:end], mode="clip")

    each = max(images[:1].nbytes, 1)
    in_spans(len(indices), take, least=max(_COPIED // each, 1))


def normalize(
    images: UInt8[Tensor, "batch height width 3"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "batch 3 height width"]:
    """(x / 255 - mean) / std per channel, in float32, bit-equal to torchvision's transforms.

    mean, std: of the red, green and blue channel, on the scale from 0 to 1; std above 0.
    The result lies on the images' device, channels last in memory.
    """
    table = lookup_table(mean, std)
    if images.device.type != "cpu":
        everything = torch.arange(len(images), device=images.device)
        there = torch.from_numpy(table).to(images.device)
        return gather_normalized(images, everything, there, channels_last=True)
    # NumPy takes huge pages for its memory; torch's would take as long to touch as to fill.
    result = np.empty(images.shape, np.float32)
    pixels, numbers = images.reshape(-1, 3).numpy(), result.reshape(-1, 3)
    if library() is not None:
        look_up_rgb(pixels.reshape(-1), table, numbers.reshape(-1), least=3 * PIECE)
    else:
        _look_up(pixels, table, numbers)
    return torch.from_numpy(result).permute(0, 3, 1, 2)


def lookup_table(mean: Sequence[float], std: Sequence[float]) -> Float32[np.ndarray, "3 256"]:
    """What `normalize` makes of each of the 256 values in each channel."""
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ArgumentError(
            f"mean {tuple(mean)} and std {tuple(std)}: expected three numbers each, std above 0"
        )
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    center, scale = np.array([mean, std], dtype=np.float32)[:, :, None]
    table: NDArray[np.float32] = (values - center) / scale
    return table


def gather_normalized(
    images: UInt8[Tensor, "images height width 3"],
    positions: Int64[Tensor, " batch"],
    table: Float32[Tensor, "3 256"],
    *,
    channels_last: bool,
) -> Float32[Tensor, "batch 3 height width"]:
    """`normalize` of the images at `positions`; all of it lies on one accelerator.

    Values come from the table: a GPU may divide differently in the last bit.

    channels_last: how the result lies in memory.
    """
    shape = (len(positions), 3, *images.shape[1:3])
    layout = torch.channels_last if channels_last else torch.contiguous_format
    if images.device.type in network.DEVICES and network.has_triton():
        from gradsurgery.kernels.gather import gather_rgb

        out = torch.empty(shape, device=images.device, memory_format=layout)
        gather_rgb(images, positions, table, out)
        return out
    channels = torch.arange(0, 768, 256, dtype=torch.int32, device=images.device)
    entries = images.index_select(0, positions) + channels
    numbers = table.view(-1).index_select(0, entries.view(-1)).view(entries.shape)
    return numbers.permute(0, 3, 1, 2).contiguous(memory_format=layout)


def _look_up(
    pixels: UInt8[np.ndarray, "pixels 3"],
    table: Float32[np.ndarray, "3 256"],
    result: Float32[np.ndarray, "pixels 3"],
) -> None:
    """The compiled loop in NumPy's operations."""

    def look_up_span(begin: int, end: int) -> None:
        for start in range(begin, end, PIECE):
            part = slice(start, min(start + PIECE, end))
            for channel in range(3):
                result[part, channel] = table[channel][pixels[part, channel]]

    in_spans(len(pixels), look_up_span, least=PIECE)
