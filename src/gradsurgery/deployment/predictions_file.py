"""Predictions in a CSV or Parquet file, which grows while they are made and is gone on with."""

import csv
import fcntl
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from gradsurgery.atomic import atomic_file, check_folder, output_error
from gradsurgery.deployment.trained_model import Predictions
from gradsurgery.errors import ArgumentError, DataError, OutputError

SUFFIXES = (".csv", ".parquet")


class PredictionsFile:
    """A row a picture: `image`, `class`, `probability`, those of the next classes, and `error`.

    `model` is the beginning of the sha256 of the model file: rows of two models never mix. A CSV
    file grows row by row. What becomes a Parquet file does so beside it, as a CSV file that ends in
    `.part`, and is turned into it in the end.

    done: the pictures that have a row. failed: how many of the rows that were there have an error.
    has_grown: whether a row was added.
    """

    def __init__(self, path: Path, file: IO[str], columns: list[str], model: str) -> None:
        self.path = path
        self.done: set[str] = set()
        self.failed = 0
        self.has_grown = False
        self._file = file
        self._columns = columns
        self._model = model
        self._writer = csv.writer(file, lineterminator="\n")

    def add(self, predictions: Predictions) -> None:
        """Write the rows of a batch; they are on the disk when this returns."""
        places = (len(self._columns) - 3) // 2
        for name, best in zip(predictions.names, predictions.top(places), strict=True):
            cells = [text for label, p in best for text in (label, f"{p:.6f}")]
            self._write(name, cells, "")
        for image in predictions.skipped:
            self._write(image.identity, [""] * (2 * places), image.reason)
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise output_error(self.path, error) from error

    def _write(self, name: str, cells: list[str], error: str) -> None:
        if name not in self.done:
            self.done.add(name)
            self.has_grown = True
            self._writer.writerow([name, *cells, error, self._model])

    def _go_on(self) -> None:
        """Read what is there, cut off half a row at the end, and write behind it."""
        text = self._file.read()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self._file.seek(0)
            self._file.truncate(len(whole.encode()))
            self._file.seek(0, os.SEEK_END)
        rows = csv.reader(io.StringIO(whole))
        header = next(rows, None)
        if header is None:
            self._writer.writerow(self._columns)
            return
        self._check(header == self._columns, f"has the columns {', '.join(header):.300}")
        for number, row in enumerate(rows, start=2):
            self._check(len(row) == len(header), f"is damaged in line {number}")
            self._check(row[-1] == self._model, "has predictions of another model")
            self.done.add(row[0])
            self.failed += row[-2] != ""

    def _check(self, fits: bool, found: str) -> None:
        if not fits:
            raise DataError(
                f"{self.path} {found}, so that nothing can be added to it; name another file, or "
                "delete it"
            )


def check_predictions_file(path: Path) -> None:
    """Raise `ArgumentError` for another ending, `OutputError` where no new file can be made."""
    if path.suffix not in SUFFIXES:
        raise ArgumentError(f"cannot write {path}: its name must end in {' or '.join(SUFFIXES)}")
    if not path.exists():
        check_folder(path.parent)


@contextmanager
def predictions_file(path: Path, top: int, model: str) -> Iterator[PredictionsFile]:
    """The file at `path`, opened to go on with it; a Parquet file is there at the end.

    top: classes of each row. model: the sha256 of the model file.

    Raises as `check_predictions_file`, `DataError` where the file there is of another model or of
    other columns, `OutputError` where it cannot be written or another process writes it.
    """
    check_predictions_file(path)
    columns = ["image"]
    for place in range(1, top + 1):
        suffix = "" if place == 1 else f"_{place}"
        columns += [f"class{suffix}", f"probability{suffix}"]
    columns += ["error", "model"]
    growing = path if path.suffix == ".csv" else path.with_name(f"{path.name}.part")
    is_new = not growing.exists()
    if growing != path and path.exists() and is_new:
        _parquet_to_csv(path, growing)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with growing.open("a+", encoding="utf-8", newline="") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.seek(0)
            found = PredictionsFile(growing, file, columns, model[:16])
            try:
                found._go_on()
            except (UnicodeDecodeError, csv.Error) as error:
                raise DataError(
                    f"{growing} is no CSV file ({error}); name another file, or delete it"
                ) from error
            try:
                yield found
            except BaseException:
                if is_new and not found.has_grown:  # nothing is lost
                    growing.unlink(missing_ok=True)
                raise
    except BlockingIOError as error:
        raise OutputError(
            f"another process is writing {growing}; wait for it to end, or name another file"
        ) from error
    except OSError as error:
        raise output_error(growing, error) from error
    if growing != path:
        _csv_to_parquet(growing, path)
        growing.unlink()


def _csv_to_parquet(source: Path, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.csv as pa_csv
    import pyarrow.parquet as pq

    with source.open(encoding="utf-8") as file:
        columns = next(csv.reader(file))
    kinds = {name: pa.float32() if "probability" in name else pa.string() for name in columns}
    convert = pa_csv.ConvertOptions(column_types=kinds, strings_can_be_null=False)
    table = pa_csv.read_csv(source, convert_options=convert)
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary)


def _parquet_to_csv(source: Path, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(source).to_pydict()
    except (OSError, OverflowError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"{source} is no Parquet file of predictions; name another file, or delete it"
        ) from error
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(table)
        for row in zip(*table.values(), strict=True):
            writer.writerow(
                "" if v is None else f"{v:.6f}" if isinstance(v, float) else v for v in row
            )
