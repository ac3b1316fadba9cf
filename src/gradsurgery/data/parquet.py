"""Images in Parquet files, in the layout of Hugging Face `datasets`."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from typing_extensions import override

from gradsurgery.data.splits import parts_in
from gradsurgery.data.tables import (
    ROWS_AT_ONCE,
    TableSource,
    check_columns,
    column_name,
    column_names,
    file_name,
    file_state,
    image_bytes,
    image_kind,
    order_of_classes,
)
from gradsurgery.errors import DataError, one_line


class ParquetSource(TableSource):
    """The rows of one Parquet file, or of all those below a folder.

    Columns: `image` (binary; or the path of a file, relative to the folder of the table; or a
    struct of bytes and path), `domain` and `label` (string, or integer with or without names).
    Names of integers are read from the schema's metadata key "huggingface"; integers without names
    are called by their digits. A column `split` says which part an image belongs to; without one,
    the words train, validation and test in the names of several files or their folders do.

    columns: what these columns are called in the files, where that is not their own name.
    """

    def __init__(self, root: Path, columns: Mapping[str, str]) -> None:
        self.files = parquet_files(root)
        self._states = [file_state(path.resolve()) for path in self.files]
        self.columns = dict(columns)
        self._root = root
        tables = [_read_rows(path, self.columns) for path in self.files]
        self._lengths = [len(table.labels) for table in tables]

        def joined(what: str) -> list[Any]:
            return [each for table in tables for each in getattr(table, what)]

        known = all(table.beside is not None for table in tables)
        self._beside: list[Path] | None = joined("beside") if known else None
        domains, classes, parts, groups = map(joined, ("domains", "labels", "parts", "groups"))
        order = order_of_classes([table.class_names for table in tables], set(classes))
        name = root.resolve().name.removesuffix(".parquet")
        super().__init__(name, domains, classes, list(map(file_name, joined("paths"))), order)
        if not any(parts):
            of_files = [_part_of(path, root) for path in self.files]
            if len({part for part in of_files if part}) > 1:
                pairs = zip(of_files, self._lengths, strict=True)
                parts = [part for part, rows in pairs for _ in range(rows)]
        if any(parts):
            self.parts = tuple(parts[row] for row in self.listing.rows)
        if any(groups):
            self.groups = tuple(groups[row] for row in self.listing.rows)

    @override
    def place(self) -> str:
        return f"parquet/{sorted(self.columns.items()) or ''}{self._root.resolve()}"

    @override
    def encoded(self) -> Iterator[bytes]:
        import pyarrow.parquet as pq

        image = column_name(self.columns, "image")
        for path, as_listed in zip(self.files, self._states, strict=True):
            if file_state(path.resolve()) != as_listed:
                raise DataError(f"{path} has changed since its rows were listed; open it anew")
            with _readable(path), pq.ParquetFile(path) as file:
                batches = file.iter_batches(ROWS_AT_ONCE, columns=[image])
                cells = (cell for batch in batches for cell in batch.column(0).to_pylist())
                for row, cell in enumerate(cells):
                    yield image_bytes(cell, path.parent, f"{path}, row {row}")

    @override
    def signature(self) -> str | None:
        if self._beside is None:
            return None
        beside = [file_state(path) for path in self._beside]
        return "parquet/" + json.dumps([*self._states, beside] if beside else self._states)

    @override
    def place_of_row(self, row: int) -> str:
        for path, length in zip(self.files, self._lengths, strict=True):
            if row < length:
                return f"{path}, row {row}"
            row -= length
        raise IndexError(row)


def _part_of(path: Path, root: Path) -> str | None:
    """The part that a file's name means, or that of the innermost folder which means one."""
    above = path.relative_to(root).parents if path != root else ()
    for name in (path.stem, *(folder.name for folder in above)):
        if meant := parts_in(name):
            return meant.pop() if len(meant) == 1 else None
    return None


def parquet_files(root: Path) -> list[Path]:
    """The Parquet file `root`, or those below it, hidden ones aside; sorted."""
    if root.is_file():
        return [root]
    return sorted(
        path
        for path in root.rglob("*.[pP][aA][rR][qQ][uU][eE][tT]")
        if not any(part.startswith(".") for part in path.relative_to(root).parts)
    )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Errors of reading a Parquet file as one line."""
    import pyarrow as pa

    try:
        yield
    # Damaged bytes lead to text that is no text, sizes that no memory holds, ...
    except (OSError, pa.ArrowException, ValueError, MemoryError, OverflowError) as error:
        raise DataError(
            f"cannot read {path} as Parquet: {one_line(error)}; copy or download it again"
        ) from error


class _Rows(NamedTuple):
    """What a file's rows say but for their images.

    class_names: those that integers stand for, None where the file names none.
    paths: of the images, where the file has them.
    beside: the files that hold the images; none where the table holds all, None where it is not
        known which.
    """

    domains: list[str]
    labels: list[str]
    class_names: Sequence[str] | None
    parts: list[str | None]
    groups: list[str | None]
    paths: list[str | None]
    beside: list[Path] | None


def _read_rows(path: Path, columns: Mapping[str, str]) -> _Rows:
    """What every row says but for its image, and where the images are; reads no image."""
    import pyarrow.parquet as pq

    image, domain, label, split = (
        column_name(columns, role) for role in ("image", "domain", "label", "split")
    )
    with _readable(path), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        check_columns(schema.names, str(path), columns)
        kind = image_kind(schema.field(image).type, str(path))
        read = {"bytes": [], "paths": [image], "both": [f"{image}.path"]}[kind]
        also = [split if split in schema.names else None, columns.get("group")]
        named = dict.fromkeys(name for name in (domain, label, *also) if name)
        table = file.read(columns=[*named, *read])
        stored = kind == "bytes" or (kind == "both" and _all_stored(file, image))
        cells = {name: table[name].to_pylist() for name in table.column_names}
    names = _declared_names(schema.metadata, path, (domain, label))
    none: list[str | None] = [None] * table.num_rows
    paths: list[str | None] = cells.get(image, none)
    if kind == "both":
        paths = [cell and cell["path"] for cell in cells[image]]
    beside = [path.parent / text for text in paths if text] if kind == "paths" else None
    parts, groups = (list(map(_text, cells[name])) if name else none for name in also)
    return _Rows(
        column_names(cells[domain], names[domain], domain, str(path)),
        column_names(cells[label], names[label], label, str(path)),
        names[label],
        parts,
        groups,
        paths,
        [] if stored else beside,
    )


def _text(cell: Any) -> str | None:
    """What a cell says, None where it is empty or not a number."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    return str(cell) or None


def _all_stored(file: Any, image: str) -> bool:
    """Whether the file's statistics say that every row holds the bytes of its image."""
    groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
    columns = (rows.column(number) for rows in groups for number in range(rows.num_columns))
    found = [each.statistics for each in columns if each.path_in_schema == f"{image}.bytes"]
    return all(each is not None and each.null_count == 0 for each in found)


def _declared_names(
    metadata: dict[bytes, bytes] | None, path: Path, columns: Sequence[str]
) -> dict[str, Sequence[str] | None]:
    """The names that `datasets` writes into the schema's metadata, None without any."""
    found: dict[str, Sequence[str] | None] = dict.fromkeys(columns)
    text = (metadata or {}).get(b"huggingface")
    try:
        features = json.loads(text).get("info", {}).get("features", {}) if text else {}
        for column in found:
            found[column] = names = features.get(column, {}).get("names")
            listed = isinstance(names, list) and all(isinstance(name, str) for name in names)
            if names is not None and not listed:
                raise TypeError("names")
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path}: its metadata 'huggingface' does not describe the columns as `datasets` "
            "does; write the file again, or remove the metadata"
        ) from error
    return found
