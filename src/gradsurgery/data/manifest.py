"""Tables of paths: CSV, TSV and JSONL with the columns path, label, domain, and perhaps split."""

import codecs
import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gradsurgery.data.folder import FilesSource, ImageFile
from gradsurgery.data.tables import check_columns, column_name
from gradsurgery.errors import DataError, one_line, printable

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
NEEDED = ("path", "label", "domain")
_ENCODINGS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
Row = dict[str, Any]
Line = tuple[int, list[str], list[Any]]
"""The line that a row begins in, the columns' names, and its cells."""


class ManifestSource(FilesSource):
    """The images that a table names, one a row.

    Paths are relative to the table's folder, or absolute. CSV is separated by commas, semicolons or
    tabs, whichever its first line has; encodings are UTF-8, and UTF-16 with its mark.

    columns: what the columns path, label, domain and split are called in the table, where that is
        not their own name; and group, which no column is for unless it is named.

    Raises `DataError`, one line, for a table that cannot be read, a column that is missing, an
    empty value, a file that does not exist or is named twice.
    """

    def __init__(self, path: Path, columns: Mapping[str, str]) -> None:
        self.table = path
        also = ("split", "group") if "group" in columns else ("split",)
        names = {role: column_name(columns, role) for role in (*NEEDED, *also)}
        files: list[ImageFile] = []
        seen: dict[str, tuple[int, dict[str, str]]] = {}
        missing: list[str] = []
        for line, cells in _rows(path, columns):
            row = {role: self._cell(line, cells, name, role) for role, name in names.items()}
            file = _located(path.parent, row["path"])
            if file is None:
                missing.append(f"line {line}: {printable(row['path'])}")
                continue
            place = os.path.normpath(file.absolute())
            if (before := seen.setdefault(place, (line, row))) != (line, row):
                raise self._repeated(line, row, *before)
            part, group = row["split"] or None, row.get("group") or None
            files.append(ImageFile(file, row["domain"], row["label"], row["path"], part, group))
        if missing:
            more = f" (and {len(missing) - 1} more files)" if len(missing) > 1 else ""
            raise DataError(
                f"{path}, {missing[0]} is no file{more}; paths are relative to "
                f"{path.parent.absolute()}; mend them, or remove the rows"
            )
        if not files:
            raise DataError(f"{path} has no rows; give one for each image")
        super().__init__(path, files, reading=f"table {sorted(columns.items())} ")
        self.name = printable(path.stem)

    def _cell(self, line: int, cells: Row, name: str, role: str) -> str:
        value = cells.get(name, "")
        if isinstance(value, dict | list):
            raise DataError(
                f"{self.table}, line {line}: {name} is {value!r:.60}, expected text or a number; "
                "write the value itself"
            )
        text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
        text = text.strip()
        if not text and role in NEEDED:
            raise DataError(
                f"{self.table}, line {line}: {name} is empty, expected the image's {role}; fill it "
                "in, or remove the row"
            )
        return text

    def _repeated(
        self, line: int, row: dict[str, str], first: int, before: dict[str, str]
    ) -> DataError:
        changed = [role for role in row if row[role] != before[role] and role != "path"]
        as_well = ""
        if changed:
            role = changed[0]
            as_well = f", with the {role} {row[role]!r:.60} instead of {before[role]!r:.60}"
        return DataError(
            f"{self.table}, line {line} names {printable(row['path'])} again, as line {first} does"
            f"{as_well}; remove one of them"
        )


def _located(folder: Path, text: str) -> Path | None:
    """The file that a cell names, with Windows' separators where there is none as it is written."""
    paths = (folder / spelled for spelled in (text, text.replace("\\", "/")))
    # Path's own raises for a name that is too long
    return next((path for path in paths if os.path.isfile(path)), None)  # noqa: PTH113


def _rows(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[int, Row]]:
    """Yield (the line it begins in, its cells by column) of every row that is not blank."""
    rows = _json_rows if path.suffix.lower() in (".jsonl", ".ndjson") else _separated_rows
    for number, (line, names, cells) in enumerate(rows(path, _text(path))):
        if number == 0:
            check_columns(names, str(path), columns, NEEDED)
        if any(cell not in ("", None) for cell in cells):
            yield line, dict(zip(names, cells, strict=False))


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check the file") from error
    encoding = next((e for mark, e in _ENCODINGS.items() if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line} is not in {encoding.upper().removesuffix('-SIG')}; save the "
            "table as UTF-8"
        ) from error


def _separated_rows(path: Path, text: str) -> Iterator[Line]:
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        yield 1, names, []  # the columns, also of a table without rows
        line = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(names):
                raise DataError(
                    f"{path}, line {line} has {len(cells)} cells, expected {len(names)} as its "
                    "first line; quote a cell that has a separator in it"
                )
            yield line, names, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; mend the row") from error


def _json_rows(path: Path, text: str) -> Iterator[Line]:
    for line, written in enumerate(text.split("\n"), start=1):
        if not written.strip():
            continue
        try:
            cells: Any = json.loads(written, parse_constant=lambda _: None)  # NaN is none
        except (ValueError, RecursionError) as error:
            reason = one_line(error)
            raise DataError(f"{path}, line {line} is not JSON: {reason}; mend the row") from error
        if not isinstance(cells, dict):
            raise DataError(f'{path}, line {line} is no object; write {{"path": …}} a line')
        yield line, list(cells), list(cells.values())
