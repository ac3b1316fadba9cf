"""One encoded image to RGB pixels."""

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradsurgery.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

WITH_ALPHA = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})


class BadImageError(DataError):
    """The bytes are no whole image; the message is the reason alone."""


def decode_image(content: bytes, size: int, resize_first: int | None = None) -> NDArray[np.uint8]:
    """Decode an image and resize it to RGB, uint8 [size, size, 3].

    The EXIF orientation is applied. Transparent pixels show white, as on a page. 16-bit gray is
    scaled to 8 bits (v / 257, rounded). Resizing is Pillow's bilinear filter with antialiasing,
    which is what torchvision's Resize does to a PIL image: first to `resize_first` where given,
    then to `size`.

    Raises `BadImageError` where the bytes are damaged, truncated or no image: nothing is guessed.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not content:
        raise BadImageError("it is empty (0 bytes)")
    try:
        with Image.open(BytesIO(content)) as file:
            file.load()
            image = to_rgb(ImageOps.exif_transpose(file))
    except BadImageError:
        raise
    except UnidentifiedImageError as error:
        raise BadImageError("it is not an image in a known format") from error
    # Pillow's decoders raise exceptions of any class on damaged bytes.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadImageError(f"it is damaged: {reason}") from error
    for side in (resize_first, size):
        if side is not None:
            image = image.resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(image)


def to_rgb(image: "Image.Image") -> "Image.Image":
    """Convert an image of any mode to RGB."""
    from PIL import Image

    if image.mode.startswith("I"):
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    elif image.mode == "F":
        raise BadImageError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    elif image.mode in WITH_ALPHA or "transparency" in image.info:
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
