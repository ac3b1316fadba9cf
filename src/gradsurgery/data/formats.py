"""The formats of picture files that can be read here, and how those beyond Pillow's are opened."""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from gradsurgery.errors import DataError

PICTURE_FORMATS = frozenset({
    "AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI",
    "TGA", "TIFF", "WEBP",
})  # fmt: skip

EXTRAS = {
    **dict.fromkeys((".heic", ".heif", ".hif"), ("pillow_heif", "heic")),
    **dict.fromkeys((".dcm", ".dicom"), ("pydicom", "dicom")),
}
"""Endings that need another package: which, and this software's extra that brings it."""

_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}

_MOST_MEMORY = 2**30
"""Bytes that decoding one picture may take; several are decoded at once."""
_LONGEST_SIDE = 100_000
_TO_LOAD = {"AVIF": 16, "GIF": 8, "HEIF": 16, "JPEG2000": 20, "WEBP": 16}
"""Bytes that these readers take for a pixel beside those they return: as measured, or more."""


class BadImageError(DataError):
    """The bytes are no whole image; the message is the reason alone."""


def pixel_bytes(image: Image.Image) -> int:
    """Bytes that Pillow keeps a pixel of this image in."""
    narrow = {"1": 1, "L": 1, "P": 1}
    return 2 if image.mode.startswith("I;16") else narrow.get(image.mode, 4)


def bytes_to_decode(image: Image.Image) -> int:
    """Bytes a pixel that are taken until an opened image is there in RGB."""
    taken = _TO_LOAD.get(image.format or "", 0)
    if image.format in ("JPEG", "MPO") and image.info.get("progressive"):
        taken = 6  # the coefficients of all of it
    is_rgb = image.mode == "RGB" and image.info.get("transparency") is None
    return pixel_bytes(image) + (taken if is_rgb else max(taken, 4))


def check_memory(size: tuple[int, int], bytes_a_pixel: int) -> None:
    """Raise `BadImageError` where a picture of this width and height would take too much memory."""
    width, height = size
    if width * height * bytes_a_pixel > _MOST_MEMORY or max(size) > _LONGEST_SIDE:
        raise BadImageError(
            f"it is too large: {width} x {height} pixels of {bytes_a_pixel} bytes while it is "
            f"decoded, at most {_MOST_MEMORY // 2**30} GiB and {_LONGEST_SIDE} pixels a side; make "
            "it smaller"
        )


def check_whole(image: Image.Image, content: bytes) -> None:
    """Raise `BadImageError` where an end is missing that Pillow's readers do without."""
    cut_off = False
    if image.format == "JPEG2000":  # in its code this pair of bytes is nothing but the end
        cut_off = b"\xff\xd9" not in content[content.find(b"\xff\x4f\xff\x51") :]
    elif image.format == "PCX" and content[1:4] == b"\x05\x01\x08" and content[65] == 1:
        cut_off = content[-769:-768] != b"\x0c"  # the palette of 256 colours
    if cut_off:
        raise BadImageError("it is damaged: image file is truncated")


def readable_suffixes() -> frozenset[str]:
    """The endings of the names of picture files that can be read here, as ".jpg"."""
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


def open_picture(content: bytes) -> Image.Image:
    """The picture, or the first of several, as Pillow has it; its pixels may not be loaded yet.

    Raises `BadImageError`, or whatever the format's reader raises, where the bytes are none, and
    `DataError` where they need a package that is not installed.
    """
    if content[4:8] == b"ftyp" and content[8:12] in _HEIF_BRANDS:
        reader: Any = _package("pillow_heif", "heic")
        heif = reader.open_heif(BytesIO(content))
        check_memory(heif.size, 4 + _TO_LOAD["HEIF"])
        opened: Image.Image = heif.to_pillow()
        opened.info.pop("exif", None)  # which it has applied
        return opened
    if content[128:132] == b"DICM":
        return Image.fromarray(_dicom_pixels(content))
    return Image.open(BytesIO(content))


def has_several(content: bytes) -> bool:
    """Whether a file has several pictures, as animations and pages are, of which the first is used.

    Not what a camera adds to its photograph in a JPEG file (MPO).
    """
    try:
        with Image.open(BytesIO(content)) as file:
            return file.format != "MPO" and bool(getattr(file, "is_animated", False))
    except Exception:  # of a format beyond Pillow's, or damaged, which decoding tells
        return False


def has_16_bits(content: bytes) -> bool:
    """Whether a file that can be decoded has 16 bits a channel, as far as Pillow's readers tell."""
    with open_picture(content) as file:
        # colours are cut down to 8 bits: of what is there only the decoder's settings speak
        return file.mode.startswith("I") or ";16" in str(getattr(file, "tile", ""))


def dark_sentences(dark: Sequence[str], unstretched: Sequence[str] | None = None) -> list[str]:
    """What there is to say of images that are black all over, by name, if there are any.

    unstretched: those of files of 16 bits; None where that is not known.
    """
    if not dark:
        return []
    are = "image is" if len(dark) == 1 else "images are"
    found = f"{len(dark):,} {are} nearly black all over, as {dark[0]}"
    if unstretched is None:
        return [f"{found}; values of 12 bits in files of 16 are to be multiplied by 16 before."]
    have = "file has" if len(unstretched) == 1 else "files have"
    of_16 = f"{len(unstretched):,} {have} 16 bits, as {''.join(unstretched[:1])}"
    cure = "values of 12 bits come out so; multiply them by 16 before."
    return [f"{found}.", *([f"Of these {of_16}: {cure}"] if unstretched else [])]


def _package(name: str, extra: str) -> Any:
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
    channels = int(data.get("SamplesPerPixel", 1))
    check_memory((int(data.Columns), int(data.Rows)), 8 * channels if channels > 1 else 40)
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
