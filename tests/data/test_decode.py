import struct
import warnings
import zlib
from contextlib import suppress
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from gradsurgery.data import decode_image
from gradsurgery.data.formats import BadImageError, readable_suffixes


def encoded(image: Image.Image, kind: str = "png", **options) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def flat(mode: str, colour, kind: str = "png", **options) -> np.ndarray:
    """The middle pixel of a decoded image of one colour."""
    pixels = decode_image(encoded(Image.new(mode, (8, 8), colour), kind, **options), 8)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (8, 8, 3)
    return pixels[4, 4].tolist()


def test_gray_and_one_bit_images_have_three_equal_channels():
    assert flat("L", 77) == [77, 77, 77]
    assert flat("1", 1) == [255, 255, 255]


@pytest.mark.parametrize(("alpha", "expected"), [(255, 20), (0, 255), (102, 161)])
def test_transparency_shows_white(alpha, expected):
    # 102 is 40 %: 0.4 * 20 + 0.6 * 255 = 161.
    assert flat("RGBA", (20, 20, 20, alpha)) == [expected] * 3
    assert flat("LA", (20, alpha)) == [expected] * 3


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_transparent_colour_shows_white(mode):
    colour = 9 if mode == "L" else (9, 8, 7)
    assert flat(mode, colour, transparency=colour) == [255, 255, 255]
    other = 10 if mode == "L" else (10, 8, 7)
    assert flat(mode, other, transparency=colour)[0] == 10


@pytest.mark.parametrize("kind", ["png", "gif"])
def test_palettes_with_and_without_transparency(kind):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 200, 30, 1, 2, 3])
    assert decode_image(encoded(image, kind), 8)[4, 4].tolist() == [10, 200, 30]
    transparent = encoded(image, kind, transparency=1)
    assert decode_image(transparent, 8)[4, 4].tolist() == [255, 255, 255]


def test_palette_with_an_alpha_for_each_colour():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 20, 20, 20])
    content = encoded(image, transparency=bytes([255, 102]))
    assert decode_image(content, 8)[4, 4].tolist() == [161, 161, 161]


def test_cmyk_jpeg_is_not_inverted():
    # Pillow writes Adobe's marker and inverted values, as Photoshop does.
    content = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "jpeg", quality=95)
    assert b"Adobe" in content
    red, green, blue = decode_image(content, 16)[8, 8].tolist()
    assert red > 250
    assert green < 5
    assert blue < 5


def test_cmyk_tiff():
    assert flat("CMYK", (255, 0, 0, 0), "tiff") == [0, 255, 255]


@pytest.mark.parametrize(
    ("value", "expected"), [(0, 0), (257, 1), (384, 1), (386, 2), (32896, 128), (65535, 255)]
)
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_are_scaled_not_clipped(value, expected, kind):
    image = Image.fromarray(np.full((8, 8), value, dtype=np.uint16))
    assert decode_image(encoded(image, kind), 8)[4, 4].tolist() == [expected] * 3


def test_integers_and_floats_beyond_sixteen_bits_are_refused():
    wide = Image.fromarray(np.full((8, 8), 70000, dtype=np.int32))
    with pytest.raises(BadImageError, match="more than 16 bits"):
        decode_image(encoded(wide, "tiff"), 8)
    floats = Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32))
    with pytest.raises(BadImageError, match="floating-point"):
        decode_image(encoded(floats, "tiff"), 8)


# Where the stored image's top left corner is seen, as (row, column), by EXIF orientation.
CORNERS = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}


@pytest.mark.parametrize("orientation", CORNERS)
def test_exif_orientation_is_applied(orientation):
    pixels = np.zeros((16, 16), dtype=np.uint8)
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    seen = decode_image(encoded(Image.fromarray(pixels), exif=exif), 16)[4::8, 4::8, 0]
    assert np.argwhere(seen == 255).tolist() == [list(CORNERS[orientation])]


@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(1, 50),
    st.sampled_from([None, 31]),
    st.integers(0, 2**32 - 1),
)
def test_resizing_is_torchvisions(width, height, size, resize_first, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    sides = [size] if resize_first is None else [resize_first, size]
    expected = transforms.Compose([transforms.Resize((side, side)) for side in sides])(image)
    decoded = decode_image(encoded(image), size, resize_first)
    assert torch.equal(torch.from_numpy(decoded.copy()), torch.from_numpy(np.array(expected)))


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "webp", "tiff"])
def test_truncated_images_are_refused(kind):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(pixels), kind)
    for end in (10, len(content) // 2, len(content) - 200):
        with pytest.raises(BadImageError):
            decode_image(content[:end], 8)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"not an image at all", "known format"), (b"\xff\xd8\xff", "known format")],
)
def test_what_is_no_image_is_refused(content, reason):
    with pytest.raises(BadImageError, match=reason) as caught:
        decode_image(content, 8)
    assert "0x" not in str(caught.value)  # an address would make records differ


@given(st.integers(8, 2000), st.integers(0, 255))
def test_damaged_bytes_never_escape_as_another_error(place, value):
    pixels = np.random.default_rng(0).integers(0, 256, (25, 25, 3), dtype=np.uint8)
    content = bytearray(encoded(Image.fromarray(pixels)))
    content[place % len(content)] = value
    with suppress(BadImageError):
        assert decode_image(bytes(content), 8).shape == (8, 8, 3)


def png(depth: int, kind: int, rows: list[bytes], clear: bytes, size=None) -> bytes:
    """A PNG by hand, 2 pixels wide, or of a `size` that it says.

    `kind` 0 is gray, 2 RGB, 4 and 6 these with alpha; `clear` is its tRNS chunk.
    """

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", *(size or (2, len(rows))), depth, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = ((b"IHDR", header), (b"tRNS", clear), (b"IDAT", pixels), (b"IEND", b""))
    used = (each for each in chunks if each != (b"tRNS", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in used)


@pytest.mark.parametrize(
    ("depth", "row", "clear", "expected"),
    [
        # The first of the two pixels is transparent, hence white; the other shows its gray.
        (16, struct.pack(">HH", 1000, 257 * 40), 1000, 40),
        (8, bytes([3, 40]), 3, 40),
        (4, bytes([0x3A]), 3, 10 * 255 // 15),
        (2, bytes([0b01100000]), 1, 2 * 255 // 3),
        (1, bytes([0b10000000]), 1, 0),
    ],
)
def test_a_transparent_gray_shows_white_at_any_depth(depth, row, clear, expected):
    content = png(depth, 0, [row, row], struct.pack(">H", clear))
    opened = decode_image(content, 2)
    assert opened[:, 0].tolist() == [[255] * 3] * 2
    assert opened[:, 1].tolist() == [[expected] * 3] * 2


def test_a_transparent_colour_of_sixteen_bits_is_refused():
    # Pillow keeps 8 of the 16 bits: (1, 2, 3) here cannot be told from (0, 0, 0).
    row = struct.pack(">6H", 1, 2, 3, 0, 0, 0)
    with pytest.raises(BadImageError, match="16 bits and one of them is transparent"):
        decode_image(png(16, 2, [row, row], struct.pack(">HHH", 1, 2, 3)), 2)


def test_an_image_that_is_too_large_is_not_called_damaged(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # twice as many are an error
    with pytest.raises(BadImageError, match=r"too large: .*\(121 pixels\) exceeds limit of 100"):
        decode_image(encoded(Image.new("L", (11, 11))), 8)


def test_a_postscript_program_is_not_run():
    with pytest.raises(BadImageError, match="PostScript"):
        decode_image(encoded(Image.new("RGB", (9, 9)), "eps"), 8)


@pytest.mark.parametrize("kind", ["jpeg2000", "ppm", "mpo", "avif", "tga", "qoi", "pcx"])
def test_other_formats_that_pillow_reads(kind):
    assert np.abs(np.array(flat("RGB", (200, 100, 50), kind), int) - (200, 100, 50)).max() <= 6


def test_endings_of_readable_files():
    assert {".jpg", ".jfif", ".png", ".avif", ".jp2", ".ppm", ".mpo"} <= readable_suffixes()
    assert not {".eps", ".pdf", ".h5", ".txt", ".mpg", ".db", ""} & readable_suffixes()


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "group4"])
def test_a_damaged_tiff_writes_nothing_to_the_terminal(compression, capfd):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).convert("1").save(buffer, "TIFF", compression=compression)
    content = bytearray(buffer.getvalue())
    for place in range(len(content)):
        content[place] ^= 85
        with suppress(BadImageError), warnings.catch_warnings(action="ignore"):
            decode_image(bytes(content), 8)
        content[place] ^= 85
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("depth", "kind", "bytes_a_pixel"),
    [(8, 4, 8), (16, 4, 8), (8, 6, 8)],  # gray with alpha, twice; RGBA
)
def test_a_picture_that_would_take_too_much_memory_is_refused_unread(depth, kind, bytes_a_pixel):
    content = png(depth, kind, [b"\0" * 8], b"", size=(13_000, 13_000))
    expected = rf"too large: 13000 x 13000 pixels of {bytes_a_pixel} bytes .*at most 1 GiB"
    with pytest.raises(BadImageError, match=expected):
        decode_image(content, 8)
    with pytest.raises(BadImageError, match="at most 1 GiB and 100000 pixels a side"):
        decode_image(png(8, 0, [b"\0"], b"", size=(1, 100_001)), 8)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("L", {"transparency": 3}),
        ("1", {"transparency": 0}),
        ("I;16", {}),
        ("I;16", {"transparency": 70}),
        ("LA", {}),
        ("P", {"transparency": 2}),
        ("RGB", {"transparency": (0, 0, 0)}),
        ("RGBA", {}),
    ],
)
def test_a_picture_converted_in_tiles_is_the_one_converted_at_once(mode, options, monkeypatch):
    rng = np.random.default_rng(0)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 90, (23, 17), dtype=np.uint16))
    else:
        colours = Image.fromarray(rng.integers(0, 5, (23, 17, 4), dtype=np.uint8), "RGBA")
        image = colours.convert("RGB").convert(mode) if options else colours.convert(mode)
    content = encoded(image, **options)
    at_once = decode_image(content, 23)
    monkeypatch.setattr("gradsurgery.data.decode.TILE", 5)
    assert np.array_equal(decode_image(content, 23), at_once)


def test_a_palette_or_an_end_that_is_missing_is_noticed():
    pixels = Image.fromarray(np.arange(1, 65, dtype=np.uint8).reshape(8, 8))
    pcx = encoded(pixels.convert("P"), "pcx")
    jpeg_2000 = encoded(Image.new("RGB", (1, 1), (200, 10, 60)), "jpeg2000")
    assert decode_image(jpeg_2000, 1).tolist() == [[[200, 10, 60]]]
    for content in (pcx[:-1], pcx[:-300], jpeg_2000[:-2]):
        with pytest.raises(BadImageError, match="truncated"):
            decode_image(content, 8)


def test_a_line_keeps_a_pixel_of_its_width_between_the_margins():
    padded = decode_image(encoded(Image.new("RGB", (1, 99), (200, 10, 60))), 9, resize="pad")
    assert (padded[:, 4] == [200, 10, 60]).all()
    assert (np.delete(padded, 4, axis=1) == 255).all()
