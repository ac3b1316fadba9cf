"""Images in tables with the columns image, domain and label (Parquet files, the Hub)."""

import hashlib
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradsurgery.data.source import Source, list_images
from gradsurgery.errors import DataError

COLUMNS = ("image", "domain", "label")


class TableSource(Source):
    """Rows of (image, domain, label).

    An image's file is the name its row carries. Rows without one are called by the hash of their
    bytes, and rows of one domain and class that share a name are numbered in the order of that
    hash ("dog.jpg", "dog.jpg#2"): identities do not depend on the order of the rows.
    """

    def __init__(
        self,
        name: str,
        domains: Sequence[str],
        classes: Sequence[str],
        files: Sequence[str | None],
        class_order: Sequence[str] | None,
    ) -> None:
        distinct = self._distinct_files(domains, classes, files)
        super().__init__(
            name, list_images(name, domains, classes, distinct, class_order=class_order)
        )
        self._position = np.argsort(self.listing.rows)

    @abstractmethod
    def rows(self) -> Iterator[tuple[int, bytes]]:
        """Yield (row, encoded image), in storage order."""

    def contents(self) -> Iterator[tuple[int, bytes]]:
        """Yield every row's image."""
        for row, content in self.rows():
            yield int(self._position[row]), content

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
            for row, content in self.rows()
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


def check_columns(found: Sequence[str], where: str) -> None:
    """Raise `DataError` where a column is missing."""
    missing = [column for column in COLUMNS if column not in found]
    if missing:
        raise DataError(
            f"{where} has no column {' and no column '.join(missing)}, expected "
            f"{', '.join(COLUMNS)}, found {', '.join(found) or 'none'}; rename the columns"
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
            raise DataError(
                f"{where}, row {row}: {column} is {'null' if value is None else repr(value)}, "
                "expected a name or the number of a name; mend or remove the row"
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
    if first is not None and all(names == first for names in declared):
        return list(first)
    if all(name.isdecimal() for name in found):
        return sorted(found, key=int)
    return sorted(found)


def image_bytes(value: Any, folder: Path, where: str) -> bytes:
    """The encoded image of a cell: bytes, or {bytes, path}; empty where it holds none.

    Where only a path is given, the file is read (relative paths from `folder`).
    """
    cell = value if isinstance(value, dict) else {"bytes": value}
    if cell.get("bytes") is not None or not cell.get("path"):
        return bytes(cell.get("bytes") or b"")
    path = folder / cell["path"]
    try:
        content: bytes = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{where}: cannot read {path}: {error.strerror}; store the images' bytes in the table"
        ) from error
    return content


def file_name(path: str | None) -> str | None:
    """The last part of a path, None where there is none."""
    return Path(path).name or None if path else None
