"""Encoded images to RGB pixels."""

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradsurgery.data.formats import (
    BadImageError,
    bytes_to_decode,
    check_memory,
    check_whole,
    open_picture,
    pixel_bytes,
)
from gradsurgery.data.source import Source
from gradsurgery.documents.data_options import Resize
from gradsurgery.errors import DataError, one_line

if TYPE_CHECKING:
    from PIL import Image

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
    from PIL import Image, UnidentifiedImageError

    if not content:
        raise BadImageError("it is empty (0 bytes)")
    _silence_libtiff()
    try:
        with open_picture(content) as file:
            check_whole(file, content)
            return resized_rgb(file, _bit_depth(file, content), size, resize_first, resize)
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
    import ctypes

    from PIL import _imaging

    try:
        library = ctypes.CDLL(_imaging.__file__)
        for kind in ("Error", "Warning"):
            handler = getattr(library, f"TIFFSet{kind}Handler")
            handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            handler(None)
    except (OSError, AttributeError):
        return


def resized_rgb(
    image: "Image.Image",
    bit_depth: int,
    size: int,
    resize_first: int | None = None,
    resize: Resize = "squash",
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


def _turned(image: "Image.Image") -> "Image.Image":
    """The image with its EXIF orientation applied; the same object where there is nothing to do."""
    from PIL import ExifTags, ImageOps

    if image.getexif().get(ExifTags.Base.Orientation) not in range(2, 9):
        return image
    check_memory(image.size, 2 * pixel_bytes(image))
    return ImageOps.exif_transpose(image)


def _squared(image: "Image.Image", side: int, resize: Resize) -> "Image.Image":
    from PIL import Image, ImageOps

    bilinear, square = Image.Resampling.BILINEAR, (side, side)
    if image.width == image.height or resize == "squash":
        return image.resize(square, bilinear)
    if resize == "crop":
        return ImageOps.fit(image, square, bilinear)
    if side < max(image.size) / min(image.size):  # Pillow would round its narrow side to nothing
        narrow = (side, 1) if image.width > image.height else (1, side)
        image = image.resize(narrow, bilinear)
    return ImageOps.pad(image, square, bilinear, color="white")


def to_rgb(image: "Image.Image", bit_depth: int = 8) -> "Image.Image":
    """Convert an image of any mode to RGB; `bit_depth` is that of the file, where it is a PNG.

    One that is RGB is returned as it is. Raises `BadImageError` for pixels that have no colour.
    """
    from PIL import Image

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


def _tile_to_rgb(image: "Image.Image", bit_depth: int) -> "Image.Image":
    from PIL import Image

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


def _bit_depth(image: "Image.Image", content: bytes) -> int:
    """Bits of a channel in a PNG, from its header; 8 for every other format."""
    return content[24] if image.format == "PNG" else 8


def _eight_bits(pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Scale 16-bit gray to 8 bits; Pillow's own conversion clips at 255."""
    wide = pixels.astype(np.int64)
    if wide.min() < 0 or wide.max() > 65535:
        raise BadImageError("its pixels have more than 16 bits; save it with 8 or 16 bits")
    return ((wide * 2 + 257) // 514).astype(np.uint8)


def example_images(source: Source, size: int) -> dict[tuple[str, str], NDArray[np.uint8]]:
    """The first image that can be decoded of every (class, domain), uint8 [size, size, 3], RGB.

    Reads the source in its storage order, and no further than until it has them all. A pair whose
    images all cannot be decoded is absent.

    >>> from gradsurgery.data import open_source
    >>> len(example_images(open_source("rotated-digits"), 14))  # 10 digits at 6 angles
    60
    """
    listing = source.listing
    found: dict[tuple[str, str], NDArray[np.uint8]] = {}
    wanted = len(source.classes) * len(source.domains)
    for position, content in source.contents():
        label = source.classes[int(listing.label[position])]
        key = (label, source.domains[int(listing.domain[position])])
        if key in found:
            continue
        try:
            found[key] = source.decode(position, content, size)
        except BadImageError:
            continue
        if len(found) == wanted:
            break
    return found
