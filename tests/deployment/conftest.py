"""One short run on pictures of every kind, in folders."""

import json
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from gradsurgery.data import open_source, prepare
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.record import Record
from gradsurgery.training import train

CLASSES = ("bird", "cat", "dog")
SIZE = 16


class Trained(NamedTuple):
    """A run, its data and its record."""

    folder: Path
    data: Path
    record: Record

    def files(self, part: str, domain: str) -> list[Path]:
        split = json.loads((self.folder / "split.json").read_text())
        return [self.data / identity for identity in split["domains"][domain][part]]


def picture(kind: int, shade: int) -> tuple[bytes, str]:
    """A file of one of seven kinds; its colours are drawn around `shade`."""
    random = np.random.default_rng(100 * kind + shade)
    pixels = random.integers(max(shade - 60, 0), shade + 60, (21 + kind, 30, 3), dtype=np.uint8)
    image, suffix, options = Image.fromarray(pixels), "png", {}
    match kind:
        case 1:  # transparency
            image.putalpha(Image.fromarray(pixels[:, :, 0]))
        case 2:  # turned by its EXIF
            exif = Image.Exif()
            exif[0x0112] = 6
            suffix, options = "jpg", {"exif": exif}
        case 3:  # 16 bits
            image = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
        case 4:
            image = image.convert("P")
        case 5:
            image, suffix = image.convert("CMYK"), "jpg"
        case 6:
            image, suffix = image.convert("LA"), "webp"
    file = BytesIO()
    image.save(file, "jpeg" if suffix == "jpg" else suffix, **options)
    return file.getvalue(), suffix


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """domain/class/picture, 4 domains, 3 classes, 14 pictures of seven kinds each."""
    root = tmp_path_factory.mktemp("data") / "photos"
    for d in range(4):
        for c, label in enumerate(CLASSES):
            folder = root / f"shop_{'abcd'[d]}" / label
            folder.mkdir(parents=True)
            for i in range(14):
                content, suffix = picture(i % 7, 60 + 50 * c + 4 * d + i // 7)
                (folder / f"{i:02d}.{suffix}").write_bytes(content)
    return root


@pytest.fixture(scope="session")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("run") / "run"
    options = {"backbone": "small-cnn", "weights": "none", "image_size": SIZE, "device": "cpu"}
    options |= {"iterations": 30, "validate_every": 10, "batch_size": 12, "learning_rate": 5e-3}
    configuration = RunConfiguration(data=str(photos), target="shop_d", **options)
    cache = tmp_path_factory.mktemp("cache")
    images = prepare(open_source(str(photos)), SIZE, cache)
    return Trained(folder, photos, train(configuration, folder, opened=images))
