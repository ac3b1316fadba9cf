"""Training images changed at random, a batch at a time, to the same bits on every device."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from gradsurgery.documents.configuration import Augment
from gradsurgery.errors import ArgumentError
from gradsurgery.kernels import network
from gradsurgery.kernels.compiled import change_images, library
from gradsurgery.seeds import derive_seed

Pixels = UInt8[Tensor, "batch size size 3"]
Image = Float32[Tensor, "batch 3 height width"]
Numbers = Float64[np.ndarray, "batch numbers"]

SCALE = (0.7, 1.0)
"""Of a random part, the fraction of the image's area; its sides are at most as 3 to 4."""

_RATIO = 4 / 3
_TRIES = 10  # for a part that lies within the image
_JITTER = 0.3  # of brightness, contrast and saturation; the hue's is of the whole circle
_GREY = 0.1
_DRAWN = 2 * _TRIES + 2 + 1 + 4 + 4 + 1
_LEAST = 1 << 13  # pixels that are worth a thread


class Drawn(NamedTuple):
    """What becomes of the images of a batch.

    top, left, height, width: the part of it in pixels, brought back to the image's size.
    flip: whether it is mirrored.
    order: of brightness, contrast, saturation and hue, which comes when, from 0.
    factors: of these four; the hue is turned by the last, in circles.
    grey: whether the colours are taken out in the end.
    """

    top: Int64[np.ndarray, " batch"]
    left: Int64[np.ndarray, " batch"]
    height: Int64[np.ndarray, " batch"]
    width: Int64[np.ndarray, " batch"]
    flip: Bool[np.ndarray, " batch"]
    order: Int64[np.ndarray, "batch 4"]
    factors: Float64[np.ndarray, "batch 4"]
    grey: Bool[np.ndarray, " batch"]


class Augmentation:
    """Changes images on the device that they are on.

    What becomes of an image follows from (seed, step, its position in the set) alone: not from the
    images beside it, nor from what was drawn before, nor from the device. The global random state
    stays as it is.

    flip, crop, domainbed: as torchvision's transforms (v2) compute on float32 images of whole
        numbers; "domainbed" is what DomainBed (Gulrajani & Lopez-Paz 2020) trains with.
    randaugment, trivialaugment: torchvision's own, image by image.
    size: side of the images in pixels.
    """

    def __init__(self, name: Augment, *, size: int, seed: int) -> None:
        self._name, self._size, self._seed = name, size, seed
        with torch.device("cpu"):  # on which transforms draw, and keep what they draw by
            self._transform = _transform(name, size)

    def at(self, positions: Int64[np.ndarray, " batch"], step: int) -> Callable[[Pixels], Pixels]:
        """What changes the images at `positions` for step `step`; what is drawn is drawn here.

        It raises `ArgumentError` for anything but as many images of this size.
        """
        seeds = [derive_seed(self._seed, "augment", step, each) for each in positions.tolist()]
        change: Callable[[Pixels], Pixels]
        if self._transform is not None:
            change = partial(_one_by_one, self._transform, seeds)
        elif self._name == "flip":
            change = partial(_mirrored, flip=draw(seeds, self._size).flip)
        else:
            drawn = draw(seeds, self._size)
            change = partial(_changed, drawn=drawn, colours=self._name == "domainbed")
        expected = (len(seeds), self._size, self._size, 3)

        def checked(pixels: Pixels) -> Pixels:
            if pixels.shape != expected or pixels.dtype != torch.uint8:
                raise ArgumentError(
                    f"expected uint8 images of shape {list(expected)}, one for each position, "
                    f"found {pixels.dtype} {list(pixels.shape)}"
                )
            return change(pixels)

        return checked


def draw(seeds: Sequence[int], size: int) -> Drawn:
    """What becomes of images of `size` pixels, from a seed for each.

    As torchvision draws it: a part's area is uniform, so is the logarithm of the ratio of its
    sides; it is drawn anew, ten times at most, while it does not fit, and is the whole image then.
    """
    generator = torch.Generator("cpu")
    rows = [
        torch.rand(_DRAWN, generator=generator.manual_seed(seed), dtype=torch.float64, device="cpu")
        for seed in seeds
    ]
    numbers: Numbers = torch.stack(rows).numpy() if rows else np.empty((0, _DRAWN))
    tries, place, rest = np.split(numbers, [2 * _TRIES, 2 * _TRIES + 2], axis=1)
    area = size**2 * (SCALE[0] + (SCALE[1] - SCALE[0]) * tries[:, :_TRIES])
    ratio = np.exp((2 * tries[:, _TRIES:] - 1) * math.log(_RATIO))
    sides = np.rint(np.sqrt(np.stack([area / ratio, area * ratio])))
    fits: NDArray[np.bool_] = np.logical_and.reduce((sides > 0) & (sides <= size))
    first = np.arange(len(seeds)), fits.argmax(axis=1)
    height, width = np.where(fits[first], sides[:, *first], size).astype(int)
    top, left = (np.stack([size + 1 - height, size + 1 - width]) * place.T).astype(np.int64)
    flip, order, factors, grey = np.split(rest, [1, 5, 9], axis=1)
    return Drawn(
        top,
        left,
        height,
        width,
        flip[:, 0] < 0.5,
        order.argsort(axis=1),
        (2 * factors - 1) * _JITTER + [1, 1, 1, 0],
        grey[:, 0] < _GREY,
    )


def _changed(pixels: Pixels, drawn: Drawn, *, colours: bool) -> Pixels:
    """The images with all that was drawn."""
    size = pixels.shape[1]
    vertical = _neighbours(drawn.top, drawn.height, size)
    horizontal = _neighbours(drawn.left, drawn.width, size)
    horizontal = np.where(drawn.flip[:, None], horizontal[..., ::-1], horizontal)
    neighbours = np.stack([vertical, horizontal])
    factors = drawn.factors.astype(np.float32)
    if pixels.device.type in network.ONE_BY_ONE and library() is not None:
        about = (pixels.contiguous().numpy(), neighbours, drawn.order, factors, drawn.grey)
        least = max(_LEAST // size**2, 1)
        return torch.from_numpy(change_images(*about, colours=colours, least=least))
    images = _cropped(pixels, network.sent(torch.from_numpy(neighbours), pixels.device))
    if colours:
        images = _recoloured(images, drawn.order, factors, drawn.grey)
    return images.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _mirrored(pixels: Pixels, flip: Bool[np.ndarray, " batch"]) -> Pixels:
    if pixels.device.type in network.ONE_BY_ONE:  # an image at a time stays in the cache
        changed = torch.empty_like(pixels)
        for i, mirrored in enumerate(flip.tolist()):
            changed[i] = pixels[i].flip(1) if mirrored else pixels[i]
        return changed
    chosen = network.sent(torch.from_numpy(flip.nonzero()[0]), pixels.device)
    return pixels.clone().index_copy_(0, chosen, pixels.index_select(0, chosen).flip(2))


def _cropped(pixels: Pixels, neighbours: Float64[Tensor, "2 3 batch size"]) -> Image:
    """The parts that were drawn, each at the size of the whole, rounded to whole numbers.

    Bilinear: a part is not larger than the image, so that each pixel lies between two of the
    part's in a row, and two in a column.
    """
    count, size = len(pixels), pixels.shape[1]
    rows = _between(pixels.reshape(count * size, 3 * size), *neighbours[0])
    turned = rows.view(count, size, size, 3).permute(0, 2, 3, 1).reshape(count * size, 3 * size)
    columns = _between(turned, *neighbours[1]).round_()
    return columns.view(count, size, 3, size).permute(0, 2, 3, 1).contiguous()


def _neighbours(
    begin: NDArray[np.int64], length: NDArray[np.int64], size: int
) -> Float64[np.ndarray, "3 batch size"]:
    """For each pixel of a side of `size` the two of the part's that it lies between, and where.

    The rows of all images are counted one after the other.
    """
    last = length[:, None] - 1
    at = ((np.arange(size) + 0.5) * (length[:, None] / size) - 0.5).clip(0, last)
    low = np.floor(at)
    first = (begin + size * np.arange(len(begin)))[:, None]
    return np.stack([first + low, first + np.minimum(low + 1, last), at - low])


def _between(
    rows: Tensor,
    low: Float64[Tensor, "batch size"],
    high: Float64[Tensor, "batch size"],
    share: Float64[Tensor, "batch size"],
) -> Float32[Tensor, "rows components"]:
    """Rows between each two of `rows`; every operation rounds by itself, as on any device."""
    share = share.float().view(-1, 1)
    first = rows.index_select(0, low.long().view(-1)).float()
    return first.mul_(1 - share).add_(rows.index_select(0, high.long().view(-1)) * share)


def _recoloured(
    images: Image,
    order: Int64[np.ndarray, "batch 4"],
    factors: Float32[np.ndarray, "batch 4"],
    grey: Bool[np.ndarray, " batch"],
) -> Image:
    """The images after brightness, contrast, saturation and hue in each one's order, and grey."""
    given = network.sent(torch.from_numpy(factors), images.device)
    sorted_by = [order[:, turn].argsort(kind="stable") for turn in range(4)]
    sorted_by.append((~grey).argsort(kind="stable"))
    chosen = network.sent(torch.from_numpy(np.stack(sorted_by)), images.device)
    for turn in range(4):
        counts = np.bincount(order[:, turn], minlength=4).tolist()
        for number, of in enumerate(chosen[turn].split(counts)):
            change = partial(_CHANGES[number], factor=given[of, number].view(-1, 1, 1, 1))
            images = _changed_at(images, of, change)
    return _changed_at(images, chosen[4][: int(grey.sum())], _grey)


def _changed_at(images: Image, of: Int64[Tensor, " some"], change: Callable[[Image], Any]) -> Image:
    """All images, those at `of` changed."""
    if len(of) == len(images):  # in their order
        changed: Image = change(images)
        return changed.expand_as(images)
    if len(of):
        images.index_copy_(0, of, _changed_at(images.index_select(0, of), of, change))
    return images


def _grey(images: Image) -> Float32[Tensor, "batch 1 height width"]:
    red, green, blue = images.split(1, dim=1)
    grey: Image = (red * 0.2989).add_(green * 0.587).add_(blue * 0.114).floor_()
    return grey


def _blended(images: Image, other: Tensor, factor: Tensor) -> Image:
    return (images * factor).add_(other * (1 - factor)).clamp_(0, 255).floor_()


def _bright(images: Image, factor: Tensor) -> Image:
    return (images * factor).clamp_(0, 255).floor_()


def _contrasted(images: Image, factor: Tensor) -> Image:
    # a sum of whole numbers has no order
    total = _grey(images).sum((1, 2, 3), keepdim=True, dtype=torch.int64)
    # divided by a number, they would be rounded otherwise on a GPU
    return _blended(images, total.float() * (1 / images.shape[-1] ** 2), factor)


def _saturated(images: Image, factor: Tensor) -> Image:
    return _blended(images, _grey(images), factor)


def _turned(images: Image, factor: Tensor) -> Image:
    """The hue turned by `factor` circles.

    Of hue h in sixths of the circle, largest value v and range c, the channels are
    v − c·clamp(min(k, 4 − k), 0, 1), with k = (5, 3, 1) + h mod 6.
    """
    largest = images.amax(1, keepdim=True)
    range_ = largest - images.amin(1, keepdim=True)
    red, green, blue = ((largest - images).div_(range_.clamp(min=1))).split(1, dim=1)
    is_red, is_green = (largest == images[:, :1]), (largest == images[:, 1:2])
    hue = torch.where(is_green, red - blue + 2, green - red + 4)
    hue = torch.where(is_red, blue - green, hue).add_(factor * 6)
    offsets = torch.arange(5, 0, -2, dtype=hue.dtype, device=hue.device).view(3, 1, 1)
    k = hue + offsets
    k.sub_((k * (1 / 6)).floor_().mul_(6))
    k = torch.minimum(k, 4 - k).clamp_(0, 1)
    turned: Image = (largest - k.mul_(range_)).mul_(255.999 / 255)  # as torchvision's become whole
    return turned.floor_()


_CHANGES: tuple[Callable[..., Image], ...] = (_bright, _contrasted, _saturated, _turned)


def _one_by_one(transform: Any, seeds: Sequence[int], pixels: Pixels) -> Pixels:
    """The images by a transform of torchvision's; call it where nothing else draws."""
    changed = torch.empty_like(pixels)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        for i, seed in enumerate(seeds):
            # torch.manual_seed would seed every accelerator too
            torch.default_generator.manual_seed(seed)
            changed[i] = transform(pixels[i].permute(2, 0, 1)).permute(1, 2, 0)
    return changed


def _transform(name: Augment, size: int) -> Any:
    """Torchvision's transform, None where images are changed a batch at a time."""
    if name not in ("randaugment", "trivialaugment"):
        return None
    from torchvision.transforms import v2

    crop = v2.RandomResizedCrop(size, scale=SCALE, antialias=True)
    last = v2.RandAugment() if name == "randaugment" else v2.TrivialAugmentWide()
    return v2.Compose([crop, v2.RandomHorizontalFlip(), last])
