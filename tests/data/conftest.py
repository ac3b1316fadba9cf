import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gradsurgery.data import ImageSet


def encode(pixels: np.ndarray, suffix: str = "png") -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, suffix)
    return file.getvalue()


@pytest.fixture
def write_parquet() -> Callable[..., Path]:
    """Write rows (image, domain, label) as `datasets` does; label and domain names are optional."""

    def write(path: Path, rows: list[tuple], label_names=None, domain_names=None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        images, domains, labels = (list(column) for column in zip(*rows, strict=True))
        table = pa.table({"image": images, "domain": domains, "label": labels})
        features = {"image": {"_type": "Image"}}
        for column, names in (("label", label_names), ("domain", domain_names)):
            if names:
                features[column] = {"names": names, "_type": "ClassLabel"}
            else:
                dtype = str(table[column].type)
                features[column] = {"dtype": dtype, "_type": "Value"}
        metadata = json.dumps({"info": {"features": features}})
        pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), path)
        return path

    return write


@pytest.fixture
def rows_of() -> Callable[[Path], list[tuple]]:
    """The rows of a domain/class/image folder, for `write_parquet`."""

    def rows(root: Path) -> list[tuple]:
        return [
            ({"bytes": path.read_bytes(), "path": path.name}, path.parts[-3], path.parts[-2])
            for path in sorted(root.rglob("*.png"))
        ]

    return rows


@pytest.fixture(scope="session")  # one that outlives an example of hypothesis
def make_images() -> Callable[[dict[str, list[int]]], ImageSet]:
    """An image set of given numbers of images per domain and class; a pixel tells its image."""

    def make(counts: dict[str, list[int]]) -> ImageSet:
        classes = tuple(f"class{i}" for i in range(len(next(iter(counts.values())))))
        rows = [
            (d, c, i)
            for d, numbers in enumerate(counts.values())
            for c, number in enumerate(numbers)
            for i in range(number)
        ]
        domains = tuple(counts)
        images = np.zeros((len(rows), 2, 2, 3), dtype=np.uint8)
        images[:, 0, 0, 0] = np.arange(len(rows)) % 256
        images[:, 0, 0, 1] = np.arange(len(rows)) // 256
        return ImageSet(
            name="made",
            domains=domains,
            classes=classes,
            images=images,
            identities=tuple(f"{domains[d]}/{classes[c]}/{i:03d}" for d, c, i in rows),
            domain=np.array([d for d, _, _ in rows], dtype=np.int64),
            label=np.array([c for _, c, _ in rows], dtype=np.int64),
            size=2,
            digest="0",
        )

    return make
