"""Encoded images to RGB pixels, and any picture to what a trained network is given."""

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, _imaging
from torch import Tensor

from gradsurgery.data.formats import (
    BadImageError,
    bytes_to_decode,
    check_memory,
    check_whole,
    open_picture,
    pixel_bytes,
)
from gradsurgery.data.pixels import normalize
from gradsurgery.data.source import Source
from gradsurgery.documents.data_options import Resize
from gradsurgery.errors import ArgumentError, DataError, one_line

WITH_ALPHA = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
TILE = 2048
"""Side of what is converted at a time: some conversions take 30 bytes a pixel on their way."""


def decode_image(
    content: bytes, size: int, resize_first: int | None = None, resize: Resize = "squash"
) -> NDArray[np.uint8]:
    """Decode an image and resize it to RGB, uint8 [size, size, 3].

    All that a file can ask for is done here, and in this order: the first picture of several is
    taken; the EXIF orientation is applied; transparent pixels show white, as on a page; 16-bit gray
    is scaled to 8 bits (v / 257, rounded); CMYK and other modes become RGB. Then the image is
    resized, first to `resize_first` where given, then to `size`, by Pillow's bilinear filter with
    antialiasing, which is what torchvision's Resize does to a PIL image.

    resize: how an image that is not square becomes so: "squash" changes its proportions, "crop"
        keeps its middle, "pad" keeps all of it between white margins.

    Raises `BadImageError` where the bytes are damaged, truncated or no image, and where decoding
    would take more than 1 GiB: nothing is guessed. A changed byte in a format without checksums
    (BMP, PPM, PCX, …) is not noticed. `DataError` where a package is needed that is not installed.
    """
    if not content:
        raise BadImageError("it is empty (0 bytes)")
    _silence_libtiff()
    try:
        with open_picture(content) as file:
            check_whole(file, content)
            bit_depth = content[24] if file.format == "PNG" else 8  # of a channel, in its header
            return resized_rgb(file, bit_depth, size, resize_first, resize)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise BadImageError("it is not an image in a known format") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        found = str(error).partition(",")[0]
        raise BadImageError(f"it is too large: {found}; make it smaller") from error
    # Pillow's decoders raise exceptions of any class on damaged bytes.
    except Exception as error:
        raise BadImageError(f"it is damaged: {one_line(error)}") from error


@cache
def _silence_libtiff() -> None:
    """Keep the lines from the terminal that the C library writes about damaged TIFF files.

    Pillow has no setting for that. What it raises for them is the reason that is given; where the
    library cannot be reached through it, the lines stay.
    """
    try:
        library = ctypes.CDLL(_imaging.__file__)
        for kind in ("Error", "Warning"):
            handler = getattr(library, f"TIFFSet{kind}Handler")
            handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            handler(None)
    except (OSError, AttributeError):
        return


def resized_rgb(
    image: Image.Image, bit_depth: int, size: int, resize_first: int | None, resize: Resize
) -> NDArray[np.uint8]:
    """What `decode_image` makes of an image that is open; `bit_depth` as in `to_rgb`."""
    if image.format == "EPS":  # Pillow would run Ghostscript on it
        raise BadImageError("it is a PostScript program; save it as PNG")
    check_memory(image.size, bytes_to_decode(image))
    image.load()
    image = to_rgb(_turned(image), bit_depth)
    for side in (resize_first, size):
        if side is not None:
            image = _squared(image, side, resize)
    return np.asarray(image)


def _turned(image: Image.Image) -> Image.Image:
    """The image with its EXIF orientation applied; the same object where there is nothing to do."""
    if image.getexif().get(ExifTags.Base.Orientation) not in range(2, 9):
        return image
    check_memory(image.size, 2 * pixel_bytes(image))
    return ImageOps.exif_transpose(image)


def _squared(image: Image.Image, side: int, resize: Resize) -> Image.Image:
    bilinear, square = Image.Resampling.BILINEAR, (side, side)
    if image.width == image.height or resize == "squash":
        return image.resize(square, bilinear)
    if resize == "crop":
        return ImageOps.fit(image, square, bilinear)
    if side < max(image.size) / min(image.size):  # Pillow would round its narrow side to nothing
        narrow = (side, 1) if image.width > image.height else (1, side)
        image = image.resize(narrow, bilinear)
    return ImageOps.pad(image, square, bilinear, color="white")


def to_rgb(image: Image.Image, bit_depth: int = 8) -> Image.Image:
    """Convert an image of any mode to RGB; `bit_depth` is that of the file, where it is a PNG.

    One that is RGB is returned as it is. Raises `BadImageError` for pixels that have no colour.
    """
    if image.mode == "RGB" and image.info.get("transparency") is None:
        return image
    if max(image.size) <= TILE:
        return _tile_to_rgb(image, bit_depth)
    whole = Image.new("RGB", image.size)
    for left in range(0, image.width, TILE):
        for top in range(0, image.height, TILE):
            box = left, top, min(left + TILE, image.width), min(top + TILE, image.height)
            whole.paste(_tile_to_rgb(image.crop(box), bit_depth), box)
    return whole


def _tile_to_rgb(image: Image.Image, bit_depth: int) -> Image.Image:
    clear = image.info.get("transparency")
    if image.mode.startswith("I"):
        wide = np.asarray(image)
        gray = _eight_bits(wide)
        if clear is not None:
            gray[wide == clear] = 255
        image = Image.fromarray(gray)
    elif image.mode == "F":
        raise BadImageError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    elif image.mode in WITH_ALPHA or clear is not None:
        if image.mode == "L" and clear is not None and bit_depth < 8:
            # Pillow scales the pixels of 2 and 4 bits to 255, and leaves this value as it is.
            image = image.copy()
            image.info["transparency"] = clear * 255 // (2**bit_depth - 1)
        elif image.mode == "RGB" and bit_depth == 16:  # it has cut off what tells colours apart
            raise BadImageError(
                "its colours have 16 bits and one of them is transparent; save it with 8 bits or "
                "an alpha channel"
            )
        opaque = image.convert("RGBA")
        page = Image.new("RGBA", opaque.size, "white")
        return Image.alpha_composite(page, opaque).convert("RGB")
    return image.convert("RGB")


def _eight_bits(pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Scale 16-bit gray to 8 bits; Pillow's own conversion clips at 255."""
    wide = pixels.astype(np.int64)
    if wide.min() < 0 or wide.max() > 65535:
        raise BadImageError("its pixels have more than 16 bits; save it with 8 or 16 bits")
    return ((wide * 2 + 257) // 514).astype(np.uint8)


def example_images(
    source: Source,
    size: int,
    classes: Sequence[str] | None = None,
    domains: Sequence[str] | None = None,
) -> dict[tuple[str, str], NDArray[np.uint8]]:
    """The first image that can be decoded of every (class, domain), uint8 [size, size, 3], RGB.

    classes, domains: those to look for; all of them by default.

    The first in storage order, of which no more is read than it takes. A pair without images, or
    whose images all cannot be decoded, is absent.

    >>> from gradsurgery.data import open_source
    >>> len(example_images(open_source("rotated-digits"), 14))  # 10 digits at 6 angles
    60
    """
    left: dict[tuple[str, str], list[int]] = {}
    for position in source.positions.tolist():
        label = source.classes[source.listing.label[position]]
        domain = source.domains[source.listing.domain[position]]
        if (classes is None or label in classes) and (domains is None or domain in domains):
            left.setdefault((label, domain), []).append(position)
    found: dict[tuple[str, str], NDArray[np.uint8]] = {}
    while left:
        asked = {positions.pop(0): key for key, positions in left.items()}
        last = max(asked, key=source.listing.rows.__getitem__)
        for position, content in source.contents(asked):
            with suppress(BadImageError):
                found[asked[position]] = source.decode(position, content, size)
            if position == last:
                break  # what is stored behind it is not read
        left = {key: rest for key, rest in left.items() if rest and key not in found}
    return found


@dataclass(frozen=True)
class Preparation:
    """Decodes a picture, resizes and normalises it as training did; a torchvision transform.

    size: side of the network's images, pixels. mean, std: of the channels, as in `normalize`.
    resize_first: side to which pictures are resized before, if at all.
    resize: how pictures that are not square become so, as in `decode_image`.

    A picture is a path, the bytes of a file, a PIL image of any mode, an array uint8
    [height, width, 3] (RGB), [height, width, 4] (RGBA) or [height, width] (gray, also uint16), or
    a tensor of torch, uint8 [3, height, width]. With torchvision's `ImageFolder` give it
    `loader=PIL.Image.open` too: its own loader turns transparency black.

    >>> prepare = Preparation(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    >>> white = np.full((20, 30, 3), 255, np.uint8)
    >>> prepare(white).shape, prepare(white).unique()
    (torch.Size([3, 8, 8]), tensor([1.]))
    """

    size: int
    mean: Sequence[float]
    std: Sequence[float]
    resize_first: int | None = None
    resize: Resize = "squash"

    def __call__(self, picture: Any) -> Float[Tensor, "3 size size"]:
        """The picture as the network takes it; raises `BadImageError` where it is none."""
        pixels = torch.from_numpy(self.pixels(picture)[None].copy())
        return normalize(pixels, self.mean, self.std)[0]

    def pixels(self, picture: Any) -> UInt8[np.ndarray, "size size 3"]:
        """The picture decoded and resized, RGB.

        Raises `BadImageError`, the reason alone, where it is no whole picture, and `ArgumentError`
        for an object of another kind.
        """
        if isinstance(picture, str | Path):
            try:
                if Path(picture).exists() and not Path(picture).is_file():  # a device has no end
                    raise BadImageError("it is not a regular file")
                picture = Path(picture).read_bytes()
            except (OSError, ValueError) as error:
                raise BadImageError(f"it cannot be read: {one_line(error)}") from error
        if isinstance(picture, bytes):
            return decode_image(picture, self.size, self.resize_first, self.resize)
        if isinstance(picture, Tensor):
            picture = _channels_last(picture)
        if isinstance(picture, np.ndarray):
            picture = _as_image(picture)
        if not isinstance(picture, Image.Image):
            raise ArgumentError(
                f"a picture is a {type(picture).__name__}; give a path, bytes, a PIL image or an "
                "array uint8 [height, width, 3]"
            )
        try:
            return resized_rgb(
                picture, _bit_depth(picture), self.size, self.resize_first, self.resize
            )
        except BadImageError:
            raise
        except Exception as error:  # one that was opened and is damaged
            raise BadImageError(f"it is damaged: {one_line(error)}") from error


def _channels_last(picture: Tensor) -> np.ndarray:
    if picture.ndim != 3 or picture.shape[0] not in (1, 3, 4):
        raise ArgumentError(
            f"a picture is a tensor {list(picture.shape)}; expected uint8 [3, height, width]"
        )
    return np.asarray(picture.detach().cpu().permute(1, 2, 0))


def _as_image(picture: np.ndarray) -> Image.Image:
    if picture.ndim == 3 and picture.shape[2] == 1:
        picture = picture[:, :, 0]
    gray, colours = picture.ndim == 2, picture.ndim == 3 and picture.shape[2] in (3, 4)
    fits = picture.dtype == np.uint8 and (gray or colours)
    if not (fits or (gray and picture.dtype == np.uint16)) or 0 in picture.shape:
        raise ArgumentError(
            f"a picture is an array {picture.dtype} {list(picture.shape)}; expected uint8 "
            "[height, width, 3], RGB from 0 to 255"
        )
    return Image.fromarray(np.ascontiguousarray(picture))


def _bit_depth(picture: Image.Image) -> int:
    """Of a PNG that was opened elsewhere, where `to_rgb` must know it."""
    ambiguous = picture.mode in ("L", "RGB") and picture.info.get("transparency") is not None
    if picture.format != "PNG" or not ambiguous:
        return 8
    try:
        with Path(getattr(picture, "filename", "")).open("rb") as file:
            header = file.read(25)
        if header[12:16] == b"IHDR":
            return header[24]
    except OSError:
        pass
    raise BadImageError(
        "one of its colours is transparent; give its path, or the bytes of its file"
    )
