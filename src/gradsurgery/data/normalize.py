"""From pixels to what a network takes."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from gradsurgery.errors import ArgumentError
from gradsurgery.kernels import INTEGER, POINTER, function, library
from gradsurgery.kernels.spans import in_spans

PIECE = 3 * 50_000
"""Numbers (whole pixels) that go through all four operations while they lie in the cache."""


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
    costs a third of the time on a CPU, and more where memory is short. Only where
    nothing needs that result any more.
    The result lies on the images' device, channels last in memory.
    """
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ArgumentError(
            f"mean {tuple(mean)} and std {tuple(std)}: expected three numbers each, std above 0"
        )
    on_cpu = images.device.type == "cpu"
    if out is None:
        # NumPy takes huge pages for its memory; torch's would take as long to touch as to fill.
        empty = (
            torch.from_numpy(np.empty(images.shape, np.float32))
            if on_cpu
            else torch.empty(images.shape, device=images.device)
        )
        out = empty.permute(0, 3, 1, 2)
    result = out.permute(0, 2, 3, 1)
    if on_cpu and library() is not None:
        _look_up(images.reshape(-1).numpy(), mean, std, result.view(-1).numpy())
    elif on_cpu:
        channels = np.array([mean, std], dtype=np.float32)
        _in_pieces(images.reshape(-1).numpy(), channels[0], channels[1], result.view(-1).numpy())
    else:
        center, scale = torch.tensor([mean, std], dtype=torch.float32, device=images.device)
        result.copy_(images).div_(255).sub_(center).div_(scale)
    return out


def _look_up(
    pixels: NDArray[np.uint8],
    mean: Sequence[float],
    std: Sequence[float],
    result: NDArray[np.float32],
) -> None:
    """Each channel has 256 results, which are computed once and looked up."""
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    center, scale = np.array([mean, std], dtype=np.float32)[:, :, None]
    table = (values - center) / scale
    call = function("look_up_rgb", (POINTER, POINTER, POINTER, INTEGER, INTEGER))
    pointers = pixels.ctypes.data, table.ctypes.data, result.ctypes.data
    in_spans(len(pixels), lambda a, b: call(*pointers, a, b), least=PIECE, multiple=3)


def _in_pieces(
    pixels: NDArray[np.uint8],
    mean: NDArray[np.float32],
    std: NDArray[np.float32],
    result: NDArray[np.float32],
) -> None:
    """The same over flat memory, piece by piece, each thread on a span of its own."""
    size = max(min(PIECE, len(pixels)), 1)
    means, stds = np.resize(mean, size), np.resize(std, size)

    def normalize_span(begin: int, end: int) -> None:
        memory = np.empty(size, np.float32)
        for start in range(begin, end, size):
            stop = min(start + size, end)
            piece = memory[: stop - start]
            np.copyto(piece, pixels[start:stop])
            np.divide(piece, np.float32(255), out=piece)
            np.subtract(piece, means[: len(piece)], out=piece)
            np.divide(piece, stds[: len(piece)], out=result[start:stop])

    in_spans(len(pixels), normalize_span, least=PIECE, multiple=3)
