"""The formats of picture files that can be read here, and how those beyond Pillow's are opened."""

from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradsurgery.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

PICTURE_FORMATS = frozenset({
    "AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI",
    "TGA", "TIFF", "WEBP",
})  # fmt: skip

EXTRAS = {
    **dict.fromkeys((".heic", ".heif", ".hif"), ("pillow_heif", "heic")),
    **dict.fromkeys((".dcm", ".dicom"), ("pydicom", "dicom")),
}
"""Endings that need a package more: the package, and this software's extra that brings it."""

_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}


class BadImageError(DataError):
    """The bytes are no whole image; the message is the reason alone."""


def readable_suffixes() -> frozenset[str]:
    """The endings of the names of picture files that can be read here, as ".jpg"."""
    from PIL import Image, features

    formats = set(PICTURE_FORMATS)
    for name, feature in (("AVIF", "avif"), ("JPEG2000", "jpg_2000"), ("WEBP", "webp")):
        if not features.check(feature):
            formats.discard(name)
    known = Image.registered_extensions()
    more = {suffix for suffix, (package, _) in EXTRAS.items() if find_spec(package)}
    # The pixels of a PFM file are floating-point numbers.
    return frozenset({s for s in known if known[s] in formats and s != ".pfm"} | more)


def why_unread(suffix: str) -> str:
    """Why files with this ending, which is none of `readable_suffixes`, are left out."""
    if suffix in EXTRAS:
        return f"{suffix} needs pip install 'gradsurgery[{EXTRAS[suffix][1]}]'"
    return f"{suffix} is not read" if suffix else "its name has no ending"


def open_picture(content: bytes) -> "Image.Image":
    """The picture, or the first of several, as Pillow has it; its pixels may not be loaded yet.

    Raises `BadImageError`, or whatever the format's reader raises, where the bytes are none, and
    `DataError` where they need a package that is not installed.
    """
    from PIL import Image

    if content[4:8] == b"ftyp" and content[8:12] in _HEIF_BRANDS:
        heif: Any = _package("pillow_heif", "heic")
        opened: Image.Image = heif.open_heif(BytesIO(content)).to_pillow()
        opened.info.pop("exif", None)  # which it has applied
        return opened
    if content[128:132] == b"DICM":
        return Image.fromarray(_dicom_pixels(content))
    return Image.open(BytesIO(content))


def has_several(content: bytes) -> bool:
    """Whether a file has several pictures, as animations and pages are, of which the first is used.

    Not what a camera adds to its photograph in a JPEG file (MPO).
    """
    from PIL import Image

    try:
        with Image.open(BytesIO(content)) as file:
            return file.format != "MPO" and bool(getattr(file, "is_animated", False))
    except Exception:  # of a format beyond Pillow's, or damaged, which decoding tells
        return False


def _package(name: str, extra: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise DataError(
            f"a picture needs the package {name}: pip install 'gradsurgery[{extra}]'"
        ) from error


def _dicom_pixels(content: bytes) -> NDArray[np.uint8]:
    """The first frame of a DICOM file as it is meant to be shown, gray or RGB.

    Gray values go through the file's modality table and its first window; those that occur then
    are stretched to 0 … 255. MONOCHROME1 is inverted.
    """
    pydicom = _package("pydicom", "dicom")
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
    from pydicom.pixels.utils import pixel_array

    data = pydicom.dcmread(BytesIO(content))
    if "PixelData" not in data:
        raise BadImageError("it is a DICOM file without pixels")
    pixels = pixel_array(data, index=0)  # colours as RGB
    if pixels.ndim == 3:
        if pixels.dtype != np.uint8:
            raise BadImageError("its colours have more than 8 bits; save it with 8 bits")
        return np.asarray(pixels)
    shown = np.asarray(apply_voi_lut(apply_modality_lut(pixels, data), data), dtype=np.float64)
    low, high = float(shown.min()), float(shown.max())
    scaled = (shown - low) / ((high - low) or 1.0)
    if data.PhotometricInterpretation == "MONOCHROME1":
        scaled = 1 - scaled
    return np.round(scaled * 255).astype(np.uint8)
