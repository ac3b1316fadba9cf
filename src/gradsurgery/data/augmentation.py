"""Training images changed at random: which changes, and from which seeds."""

from typing import Any

import torch
from jaxtyping import Int64, UInt8
from numpy import ndarray
from torch import Tensor

from gradsurgery.documents.training_options import Augment
from gradsurgery.seeds import derive_seed

Pixels = UInt8[Tensor, "batch height width 3"]

_SCALE = (0.7, 1.0)
"""Of a random part, the fraction of the image's area; its sides are at most as 3 to 4."""


class Augmentation:
    """Changes images by torchvision's transforms, on the device that they are on.

    What becomes of an image follows from (seed, step, its position in the set) alone: not from the
    images beside it, nor from what was drawn before. The global random state stays as it is.

    size: side of the images in pixels.

    Source: `torchvision.transforms.v2`; "domainbed" is what DomainBed (Gulrajani & Lopez-Paz 2020)
    trains with.
    """

    def __init__(self, name: Augment, *, size: int, seed: int) -> None:
        self._transform = _transform(name, size)
        self._seed = seed

    def __call__(self, pixels: Pixels, positions: Int64[ndarray, " batch"], step: int) -> Pixels:
        """The images at `positions`, changed for step `step`; call it where nothing else draws."""
        changed = torch.empty_like(pixels)
        with torch.random.fork_rng(devices=[]):
            for i, position in enumerate(positions.tolist()):
                # torch.manual_seed would seed every accelerator too
                torch.default_generator.manual_seed(
                    derive_seed(self._seed, "augment", step, position)
                )
                changed[i] = self._transform(pixels[i].permute(2, 0, 1)).permute(1, 2, 0)
        return changed


def _transform(name: Augment, size: int) -> Any:
    from torchvision.transforms import v2

    crop = v2.RandomResizedCrop(size, scale=_SCALE, antialias=True)
    flip = v2.RandomHorizontalFlip()
    match name:
        case "none":
            return v2.Identity()
        case "flip":
            return flip
        case "crop":
            return v2.Compose([crop, flip])
        case "domainbed":
            jitter = v2.ColorJitter(0.3, 0.3, 0.3, 0.3)
            return v2.Compose([crop, flip, jitter, v2.RandomGrayscale(0.1)])
        case "randaugment":
            return v2.Compose([crop, flip, v2.RandAugment()])
        case "trivialaugment":
            return v2.Compose([crop, flip, v2.TrivialAugmentWide()])
