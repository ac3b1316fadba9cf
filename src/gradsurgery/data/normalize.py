"""From pixels to what a network takes."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from gradsurgery.errors import ArgumentError


def normalize(
    images: UInt8[Tensor, "batch height width 3"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "batch 3 height width"]:
    """(x / 255 - mean) / std per channel, in float32, bit-equal to torchvision's transforms.

    mean, std: of the red, green and blue channel, on the scale from 0 to 1; std above 0.
    The result lies on the images' device, channels last in memory.
    """
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ArgumentError(
            f"mean {tuple(mean)} and std {tuple(std)}: expected three numbers each, std above 0"
        )
    batch, height, width, _ = images.shape
    rows = images.reshape(batch, height, width * 3)
    # Repeated along a row, so that every operation runs over contiguous memory.
    row_mean = torch.tensor(mean, dtype=torch.float32, device=images.device).repeat(width)
    row_std = torch.tensor(std, dtype=torch.float32, device=images.device).repeat(width)
    result = torch.empty(rows.shape, dtype=torch.float32, device=images.device)
    # On a CPU image by image: the four passes over one image stay in the cache.
    pieces = zip(rows, result, strict=True) if images.device.type == "cpu" else [(rows, result)]
    for source, target in pieces:
        target.copy_(source).div_(255).sub_(row_mean).div_(row_std)
    return result.view(batch, height, width, 3).permute(0, 3, 1, 2)
