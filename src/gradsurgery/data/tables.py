"""Images in tables with the columns image, domain and label, and such tables of the Hub."""

import hashlib
import json
import logging
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from gradsurgery.data.source import Source
from gradsurgery.errors import DataError, one_line

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("image", "domain", "label")
ROWS_AT_ONCE = 64
_LONGEST_PATH = 1024  # characters


class TableSource(Source):
    """Rows of (image, domain, label).

    An image's file is the name its row carries. Rows without one are called by the hash of their
    bytes, and rows of one domain and class that share a name are numbered in the order of that
    hash ("dog.jpg", "dog.jpg#2"): identities do not depend on the order of the rows.
    """

    fewest_domains = 1

    def __init__(
        self,
        name: str,
        domains: Sequence[str],
        classes: Sequence[str],
        files: Sequence[str | None],
        class_order: Sequence[str] | None,
    ) -> None:
        distinct = self._distinct_files(domains, classes, files)
        super().__init__(name, domains, classes, distinct, class_order=class_order)

    @abstractmethod
    def place_of_row(self, row: int) -> str:
        """Where a row of the table, or of all its files in turn, is to be found."""

    @override
    def location(self, position: int) -> str:
        row = int(self.listing.rows[position])
        return f"{self.listing.identities[position]} ({self.place_of_row(row)})"

    def _distinct_files(
        self, domains: Sequence[str], classes: Sequence[str], files: Sequence[str | None]
    ) -> list[str]:
        namesakes: defaultdict[str, list[int]] = defaultdict(list)
        for row, key in enumerate(zip(domains, classes, files, strict=True)):
            namesakes["/".join(map(str, key))].append(row)
        unclear = {row for row, file in enumerate(files) if not file}
        unclear.update(row for rows in namesakes.values() if len(rows) > 1 for row in rows)
        names = [file or "" for file in files]
        if not unclear:
            return names
        hashes = {
            row: hashlib.sha256(content).hexdigest()
            for row, content in enumerate(self.encoded())
            if row in unclear
        }
        taken = set(namesakes)
        for row in sorted(unclear, key=lambda row: (hashes[row], row)):
            name = names[row] or hashes[row][:16]
            number, names[row] = 1, name
            prefix = f"{domains[row]}/{classes[row]}/"
            first_of_name = bool(files[row]) and namesakes.pop(prefix + name, None) is not None
            while not first_of_name and prefix + names[row] in taken:
                number += 1
                names[row] = f"{name}#{number}"
            taken.add(prefix + names[row])
        return names


def column_name(columns: Mapping[str, str], role: str) -> str:
    """What the column for `role` is called; that of images has two names, image and path."""
    other = {"image": "path", "path": "image"}.get(role, role)
    return columns.get(role, columns.get(other, role))


def check_columns(
    found: Sequence[str],
    where: str,
    columns: Mapping[str, str] | None = None,
    needed: Sequence[str] = COLUMNS,
) -> None:
    """Raise `DataError` where a column is missing, or there are two of one name.

    columns: what columns are called, where that is not as they are `needed`; a split or a group
        that is among them is needed too.
    """
    columns = columns or {}
    also = [role for role in ("split", "group") if role in columns]
    called = {role: column_name(columns, role) for role in (*needed, *also)}
    expected = list(called.values())
    missing = [column for column in expected if column not in found]
    if missing:
        lacking = [role for role, column in called.items() if column in missing]
        spare = [column for column in found if column not in expected] or ["species"]
        example = ",".join(f"{r}={column}" for r, column in zip(lacking, spare, strict=False))
        raise DataError(
            f"{where} has no column {' and no column '.join(missing)}, expected "
            f"{', '.join(expected)}, found {', '.join(found) or 'none'}; rename the columns, or "
            f"say what they are called with --columns, as {example}"
        )
    for column in (*expected, column_name(columns, "split")):
        if (times := list(found).count(column)) > 1:
            raise DataError(f"{where} has {times} columns {column}, expected one; rename the other")


def image_kind(kind: "pa.DataType", where: str) -> str:
    """Whether a column of images holds "bytes", "paths", or structs of "both"."""
    from pyarrow import types

    def is_text(kind: "pa.DataType") -> bool:
        return str(kind) in ("string", "large_string", "string_view")

    def is_bytes(kind: "pa.DataType") -> bool:
        named = str(kind) in ("binary", "large_binary", "binary_view")
        return named or types.is_fixed_size_binary(kind)

    plain = getattr(kind, "storage_type", kind)
    plain = plain.value_type if types.is_dictionary(plain) else plain
    if is_bytes(plain):
        return "bytes"
    if is_text(plain):
        return "paths"
    if types.is_struct(plain):
        parts = {plain.field(i).name: plain.field(i).type for i in range(plain.num_fields)}
        content, path = parts.get("bytes"), parts.get("path")
        if content is not None and path is not None and is_text(path):
            if is_bytes(content) or types.is_null(content):  # where no row has bytes
                return "both"
        elif content is not None and is_bytes(content) and (path is None or types.is_null(path)):
            return "bytes"
    found = str(kind) if len(str(kind)) <= 80 else f"{str(kind)[:79]}…"
    raise DataError(
        f"{where}: column image has the type {found}, expected the bytes of image files (binary), "
        "their paths (string), or a struct of both (bytes, path); encode the images as PNG or JPEG"
    )


def column_names(
    values: Sequence[Any], names: Sequence[str] | None, column: str, where: str
) -> list[str]:
    """The names that a column's values stand for.

    Strings stand for themselves, integers for `names` (a ClassLabel's) or their digits.
    Raises `DataError` for null, an integer out of range or any other type.
    """
    result = []
    for row, value in enumerate(values):
        if isinstance(value, str) and value:
            result.append(value)
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            found = "null" if value is None else f"{value!r:.60}"
            raise DataError(
                f"{where}, row {row}: {column} is {found}, expected a name or the number of a "
                "name; mend or remove the row"
            )
        if value < 0 or (names is not None and value >= len(names)):
            last = "" if names is None else f" to {len(names) - 1}"
            raise DataError(
                f"{where}, row {row}: {column} is {value}, expected a number from 0{last}; mend or "
                "remove the row"
            )
        result.append(str(value) if names is None else names[value])
    return result


def order_of_classes(declared: Sequence[Sequence[str] | None], found: set[str]) -> list[str]:
    """The declared order where every table declares the same, else numeric or alphabetic."""
    first = declared[0] if declared else None
    if first is not None and all(names == first for names in declared) and found <= set(first):
        return list(first)
    if all(name.isascii() and name.isdecimal() for name in found):  # of any length
        return sorted(found, key=lambda name: (len(name.lstrip("0")), name.lstrip("0"), name))
    return sorted(found)


def image_bytes(value: Any, folder: Path, place: str) -> bytes:
    """The encoded image of a cell: bytes, a path, or {bytes, path}; empty where it holds none."""
    if isinstance(value, str):
        value = {"path": value}
    elif not isinstance(value, dict):
        value = {"bytes": value}
    content: bytes | None = value.get("bytes")
    path: str | None = value.get("path")
    if content is not None or not path:
        return content or b""
    if len(path) > _LONGEST_PATH:
        raise DataError(
            f"{place}: column image holds text of {len(path)} characters, {path[:20]!r}…, expected "
            "the path of a file; where it is base64, decode it and store the bytes"
        )
    try:
        if (folder / path).exists() and not (folder / path).is_file():  # a device has no end
            raise ValueError("it is not a regular file")
        return (folder / path).read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(
            f"{place}: cannot read {folder / path}: {one_line(error)}; give paths relative to "
            "the table, or store the images' bytes in it"
        ) from error


def file_state(path: Path) -> tuple[str, int, int, int]:
    """What changes when a file does: path, size and times; -1 for an absent one.

    The time of modification can be set, that of the last change of anything cannot.
    """
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return str(path), -1, -1, -1
    return str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def file_name(path: str | None) -> str | None:
    """The last part of a path, None where there is none."""
    return Path(path).name or None if path else None


class HubSource(TableSource):
    """All splits of the data set `owner/name`, with the columns image, domain and label.

    The splits are the parts of `--split column`, where there are several.
    """

    def __init__(self, repository: str) -> None:
        self.repository = repository
        self._dataset, parts = _load(repository)
        features = self._dataset.features
        names = {column: getattr(features[column], "names", None) for column in ("domain", "label")}
        domains, classes = (
            column_names(list(self._dataset[column]), names[column], column, f"hf://{repository}")
            for column in ("domain", "label")
        )
        order = order_of_classes([names["label"]], set(classes))
        paths = (path for batch in self._batches() for path in batch.field("path").to_pylist())
        files = list(map(file_name, paths))
        super().__init__(repository.rpartition("/")[2], domains, classes, files, order)
        if len(set(parts)) > 1:
            self.parts = tuple(parts[row] for row in self.listing.rows)

    def _batches(self) -> Iterator[Any]:
        images = self._dataset.select_columns(["image"]).with_format("arrow")
        for table in images.iter(ROWS_AT_ONCE):
            yield table["image"].combine_chunks()

    @override
    def encoded(self) -> Iterator[bytes]:
        cells = (cell for batch in self._batches() for cell in batch.to_pylist())
        for row, cell in enumerate(cells):
            yield image_bytes(cell, Path(), self.place_of_row(row))

    @override
    def signature(self) -> str | None:
        paths = sorted(file["filename"] for file in self._dataset.cache_files)
        return "hub/" + json.dumps([file_state(Path(path)) for path in paths]) if paths else None

    @override
    def place_of_row(self, row: int) -> str:
        return f"hf://{self.repository}, row {row}"


@contextmanager
def silenced(*libraries: str) -> Iterator[None]:
    """Without a word of each attempt to reach the Hub: what came of them is told in the end."""
    levels = {name: logging.getLogger(name).level for name in libraries}
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _load(repository: str) -> tuple[Any, list[str]]:
    """All splits joined, images left encoded, and what the split of each row is called."""
    import datasets

    try:
        with silenced("huggingface_hub", "datasets"):
            splits = datasets.load_dataset(repository)
    # The network, the Hub and its clients raise exceptions of a dozen unrelated classes.
    except Exception as error:
        raise DataError(
            f"cannot load hf://{repository}: {one_line(error)}; check the name and the network, "
            "or give the path of a local copy (a folder domain/class/image, or Parquet files)"
        ) from error
    encoded = []
    for split in splits.values():
        check_columns(split.column_names, f"hf://{repository}")
        image_kind(split.features.arrow_schema.field("image").type, f"hf://{repository}")
        kept = split.select_columns(list(COLUMNS))
        encoded.append(kept.cast_column("image", datasets.Image(decode=False)))
    parts = [name for name, split in splits.items() for _ in range(len(split))]
    try:
        return datasets.concatenate_datasets(encoded), parts
    except ValueError as error:
        raise DataError(
            f"the splits of hf://{repository} have columns of different types: {one_line(error)}; "
            "give the path of a local copy in which they agree"
        ) from error
