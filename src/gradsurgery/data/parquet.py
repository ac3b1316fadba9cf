"""Images in Parquet files, in the layout of Hugging Face `datasets`."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gradsurgery.data.table import (
    TableSource,
    check_columns,
    column_names,
    file_name,
    image_bytes,
    order_of_classes,
)
from gradsurgery.errors import DataError

ROWS_AT_ONCE = 64


class ParquetSource(TableSource):
    """The rows of one Parquet file, or of all those below a folder.

    Columns: `image` (struct of bytes and path, or binary), `domain` (string, or integer with
    names), `label` (integer with names, or string). Names of integers are read from the schema's
    metadata key "huggingface"; integers without names are called by their digits.
    """

    def __init__(self, root: Path) -> None:
        self.files = parquet_files(root)
        self._folder = root if root.is_dir() else root.parent
        domains: list[str] = []
        classes: list[str] = []
        names: list[str | None] = []
        declared: list[Sequence[str] | None] = []
        self._lengths: list[int] = []
        for path in self.files:
            table = _read_labels(path)
            self._lengths.append(len(table["label"]))
            declared.append(table["class names"])
            domains += table["domain"]
            classes += table["label"]
            names += table["file"]
        order = order_of_classes(declared, set(classes))
        name = root.resolve().name.removesuffix(".parquet")
        super().__init__(name, domains, classes, names, order)

    def rows(self) -> Iterator[tuple[int, bytes]]:
        """Yield (row, encoded image), counting through all files."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        row = 0
        for path in self.files:
            try:
                with pq.ParquetFile(path) as file:
                    for batch in file.iter_batches(ROWS_AT_ONCE, columns=["image"]):
                        for value in batch.column(0).to_pylist():
                            yield row, image_bytes(value, self._folder, self._place(row))
                            row += 1
            except (OSError, pa.ArrowException) as error:
                raise _unreadable(path, error) from error

    def signature(self) -> str:
        """The files' paths, sizes and times of modification."""
        stats = [(str(path.resolve()), path.stat()) for path in self.files]
        return "parquet/" + json.dumps([(p, s.st_size, s.st_mtime_ns) for p, s in stats])

    def location(self, position: int) -> str:
        """The image's identity, file and row."""
        return (
            f"{self.listing.identities[position]} ({self._place(int(self.listing.rows[position]))})"
        )

    def _place(self, row: int) -> str:
        for path, length in zip(self.files, self._lengths, strict=True):
            if row < length:
                return f"{path}, row {row}"
            row -= length
        raise IndexError(row)


def parquet_files(root: Path) -> list[Path]:
    """The Parquet file `root`, or those below it, hidden ones aside; sorted."""
    if root.is_file():
        return [root]
    return sorted(
        path
        for path in root.rglob("*.parquet")
        if not any(part.startswith(".") for part in path.relative_to(root).parts)
    )


def _read_labels(path: Path) -> dict[str, Any]:
    """Domain, label and file name of every row; reads no image."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            check_columns(schema.names, str(path))
            image = schema.field("image").type
            wanted = ["domain", "label"]
            has_path = pa.types.is_struct(image) and image.get_field_index("path") >= 0
            if has_path:
                wanted.append("image.path")
            table = file.read(columns=wanted)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error
    features = _features(schema.metadata)
    names = {column: features.get(column, {}).get("names") for column in ("domain", "label")}
    paths = (
        table["image"].combine_chunks().field("path").to_pylist()
        if has_path
        else [None] * table.num_rows
    )
    return {
        "domain": column_names(table["domain"].to_pylist(), names["domain"], "domain", str(path)),
        "label": column_names(table["label"].to_pylist(), names["label"], "label", str(path)),
        "class names": names["label"],
        "file": [file_name(text) for text in paths],
    }


def _features(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """The features that `datasets` writes into the schema's metadata; empty without them."""
    text = (metadata or {}).get(b"huggingface")
    features: dict[str, Any] = json.loads(text).get("info", {}).get("features", {}) if text else {}
    return features


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = str(error).splitlines()[0]
    return DataError(f"cannot read {path} as Parquet: {reason}; copy or download it again")
