"""Formats that people have."""

import shutil
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from gradsurgery.data import decode_image, formats, open_source
from gradsurgery.data.formats import BadImageError, has_16_bits, readable_suffixes
from gradsurgery.errors import DataError


def encoded(image, kind, **options):
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(width=40, height=24):
    image = Image.new("RGB", (width, height), (250, 250, 250))
    ImageDraw.Draw(image).ellipse((4, 4, 20, 20), fill=(200, 40, 30))
    return image


def test_endings_that_are_read():
    expected = {".jfif", ".avif", ".jp2", ".ppm", ".pgm", ".mpo", ".tif", ".tiff", ".gif", ".heic",
                ".dcm", ".webp", ".bmp", ".jpe"}  # fmt: skip
    assert expected <= readable_suffixes()
    assert not {".txt", ".psd", ".svg", ".eps", ".pdf"} & readable_suffixes()


@pytest.mark.parametrize("kind", ["JPEG", "AVIF", "JPEG2000", "PPM", "TIFF", "MPO", "WEBP", "GIF"])
def test_every_format_gives_the_picture(kind):
    fine = {"quality": 95, "subsampling": 0} if kind in ("JPEG", "MPO") else {}
    found = decode_image(encoded(picture(), kind, **fine), 24).astype(int)
    expected = np.asarray(picture().resize((24, 24), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(found - expected).mean() < 4


def test_heic():
    heif = pytest.importorskip("pillow_heif")
    file = BytesIO()
    heif.from_pillow(picture()).save(file, quality=95)
    found = decode_image(file.getvalue(), 24).astype(int)
    expected = np.asarray(picture().resize((24, 24), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(found - expected).mean() < 4
    with pytest.raises(BadImageError):
        decode_image(file.getvalue()[:300], 24)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_pictures_the_first_is_taken(kind):
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    lossless = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(first, kind, save_all=True, append_images=[second], **lossless)
    assert decode_image(content, 8)[4, 4].tolist() == [255, 0, 0]


def dicom(pixels, **tags):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    data = FileDataset("x", {}, file_meta=meta, preamble=b"\0" * 128)
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelRepresentation = 0
    data.PixelData = pixels.astype(np.uint16).tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    file = BytesIO()
    pydicom.dcmwrite(file, data, enforce_file_format=True)
    return file.getvalue()


def test_dicom():
    ramp = np.tile(np.array([0, 1000, 2000, 4000]), (4, 1))
    assert decode_image(dicom(ramp), 4)[0, :, 0].tolist() == [0, 64, 128, 255]  # 63.75, 127.5
    inverted = dicom(ramp, PhotometricInterpretation="MONOCHROME1")
    assert decode_image(inverted, 4)[0, :, 0].tolist() == [255, 191, 128, 0]  # 191.25, 127.5
    # A window from 1000 to 3000: what is below is black, what is above white.
    window = dicom(ramp, WindowCenter=2000, WindowWidth=2000, VOILUTFunction="LINEAR_EXACT")
    assert decode_image(window, 4)[0, :, 0].tolist() == [0, 0, 128, 255]
    with pytest.raises(BadImageError, match="damaged"):
        decode_image(dicom(ramp)[:-8], 4)


def test_a_format_that_needs_a_package_is_named(make_folder, tmp_path, monkeypatch):
    root = make_folder(tmp_path / "set")
    shutil.copy(root / "art/cat/0.png", root / "art/cat/x.heic")
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    source = open_source(str(root))
    assert [(file.identity, file.reason) for file in source.left_out] == [
        ("art/cat/x.heic", ".heic needs pip install 'gradsurgery[heic]'")
    ]
    heif = b"\0\0\0\x20ftypheic" + bytes(100)
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    with pytest.raises(DataError, match=r"needs the package pillow_heif") as caught:
        decode_image(heif, 8)
    assert not isinstance(caught.value, BadImageError)  # which --skip-bad would leave out


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40)])
def test_squash_crop_and_pad(width, height):
    """Left to right, or top to bottom: red, then two quarters of green, then blue."""
    image = Image.new("RGB", (width, height), (0, 255, 0))
    wide = width > height
    image.paste((255, 0, 0), (0, 0, 10, 20) if wide else (0, 0, 20, 10))
    image.paste((0, 0, 255), (30, 0, 40, 20) if wide else (0, 30, 20, 40))
    content = encoded(image, "PNG")

    def line(mode):
        pixels = decode_image(content, 20, resize=mode)
        return pixels[10] if wide else pixels[:, 10]

    assert line("squash")[[1, 10, 18]].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert (line("crop") == [0, 255, 0]).all()
    assert line("pad")[[1, 10, 18]].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    padded = decode_image(content, 20, resize="pad")
    margin = padded[:4] if wide else padded[:, :4]
    assert (margin == 255).all()
    assert (padded[5:15] if wide else padded[:, 5:15]).reshape(-1, 3).min(1).max() == 0


def test_crop_and_pad_are_pillows():
    image = picture(50, 31)
    content = encoded(image, "PNG")
    bilinear = Image.Resampling.BILINEAR
    cropped = ImageOps.fit(image, (27, 27), bilinear).resize((16, 16), bilinear)
    assert np.array_equal(decode_image(content, 16, 27, "crop"), np.asarray(cropped))
    padded = ImageOps.pad(image, (27, 27), bilinear, color="white").resize((16, 16), bilinear)
    assert np.array_equal(decode_image(content, 16, 27, "pad"), np.asarray(padded))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000", "PPM"])
def test_16_bits_of_gray_are_known_in_every_format(kind):
    for depth, is_so in ((np.uint16, True), (np.uint8, False)):
        image = Image.fromarray(np.full((9, 9), 7, depth))
        assert has_16_bits(encoded(image, kind)) == is_so


@pytest.mark.parametrize("depth", [8, 16])
def test_16_bits_of_colours_are_known(depth):
    """A PNG of one pixel in RGB, written by hand."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        ends = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + ends

    header = struct.pack(">IIBBBBB", 1, 1, depth, 2, 0, 0, 0)
    pixels = zlib.compress(bytes([0, *[7] * (3 * depth // 8)]))
    parts = (b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")
    content = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
    assert Image.open(BytesIO(content)).convert("RGB").getpixel((0, 0)) == (7, 7, 7)
    assert has_16_bits(content) == (depth == 16)
