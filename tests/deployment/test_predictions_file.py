"""Rows that are written stay, and those of two models never mix."""

import csv
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gradsurgery.data import SkippedImage
from gradsurgery.deployment import Predictions
from gradsurgery.deployment.predictions_file import predictions_file
from gradsurgery.errors import ArgumentError, DataError, OutputError

MODEL = "0123456789abcdef" * 4
FIRST = Predictions(
    ("cat", "dog, or fox"),
    ["a.png", 'b "c".png'],
    np.array([[0.25, 0.75], [1, 0]], np.float64),
    (SkippedImage("x.png", "it is empty (0 bytes)"),),
)
SECOND = Predictions(("cat", "dog, or fox"), ["d.png"], np.array([[0.5, 0.5]], np.float64))


def write(path: Path, *parts: Predictions, top: int = 2, model: str = MODEL) -> set[str]:
    with predictions_file(path, top, model) as file:
        done = set(file.done)
        for part in parts:
            file.add(part)
    return done


@pytest.fixture(params=["csv", "parquet"])
def path(tmp_path: Path, request) -> Path:
    return tmp_path / "new" / f"predictions.{request.param}"


def rows(path: Path) -> list[list]:
    if path.suffix == ".csv":
        return list(csv.reader(path.read_text().splitlines()))
    frame = pd.read_parquet(path).astype(object)
    frame = frame.map(lambda v: "" if v is None or v != v else f"{v:.6f}" if v != str(v) else v)
    return [list(frame.columns), *frame.to_numpy().tolist()]


def test_a_row_has_the_best_classes_and_what_is_wrong(path):
    write(path, FIRST)
    assert rows(path) == [
        ["image", "class", "probability", "class_2", "probability_2", "error", "model"],
        ["a.png", "dog, or fox", "0.750000", "cat", "0.250000", "", MODEL[:16]],
        ['b "c".png', "cat", "1.000000", "dog, or fox", "0.000000", "", MODEL[:16]],
        ["x.png", "", "", "", "", "it is empty (0 bytes)", MODEL[:16]],
    ]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_what_is_written_is_kept_and_gone_on_with(path):
    write(path, FIRST)
    before = rows(path)
    assert write(path, FIRST, SECOND) == {"a.png", 'b "c".png', "x.png"}
    assert rows(path)[:-1] == before
    assert rows(path)[-1][0] == "d.png"


def test_half_a_row_is_written_anew(path):
    growing = path if path.suffix == ".csv" else path.with_name(f"{path.name}.part")
    write(path.with_suffix(".csv"), FIRST, SECOND)
    whole = path.with_suffix(".csv").read_bytes()
    path.with_suffix(".csv").unlink()
    for cut in range(0, len(whole), 7):
        growing.write_bytes(whole[:cut])
        write(path, FIRST, SECOND)
        expected = list(csv.reader(whole.decode().splitlines()))
        assert rows(path) == expected
        path.unlink()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "f" * 64}, "has predictions of another model"),
        ({"top": 1}, "has the columns image, class, probability, class_2"),
    ],
)
def test_rows_of_another_model_or_form_are_not_added_to(path, options, words):
    write(path, FIRST)
    before = rows(path)
    with pytest.raises(DataError, match=words) as caught:
        write(path, SECOND, **options)
    assert "\n" not in str(caught.value)
    path.with_name(f"{path.name}.part").unlink(missing_ok=True)
    assert rows(path) == before


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"some,other\nfile,here\n", b"\0\n"])
def test_a_file_of_something_else_is_left_alone(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(DataError, match="name another file, or delete it"):
        write(path, FIRST)
    assert path.read_bytes() == content


def test_two_processes_do_not_write_one_file(path):
    with (
        predictions_file(path, 2, MODEL),
        pytest.raises(OutputError, match="another process is writing"),
        predictions_file(path, 2, MODEL),
    ):
        pass


def test_the_ending_says_the_form(tmp_path):
    with pytest.raises(ArgumentError, match=r"must end in \.csv or \.parquet"):
        write(tmp_path / "predictions.json", FIRST)


def test_a_place_that_cannot_be_written_is_one_line():
    with pytest.raises(OutputError, match="cannot write"):
        write(Path("/proc/predictions.csv"), FIRST)


def test_a_failure_before_the_first_row_leaves_no_file(path):
    for _ in range(2):
        with pytest.raises(DataError, match="not finite"), predictions_file(path, 2, MODEL):
            raise DataError("logits that are not finite")
        assert list(path.parent.iterdir()) == []
    with suppress(DataError), predictions_file(path, 2, MODEL) as file:
        file.add(FIRST)
        raise DataError("after a row")
    assert len(list(path.parent.iterdir())) == 1  # which is gone on with
    assert write(path, SECOND) == {"a.png", 'b "c".png', "x.png"}
    written = rows(path)
    with pytest.raises(DataError), predictions_file(path, 2, MODEL):
        raise DataError("nothing was added")
    assert list(path.parent.iterdir()) == [path]
    assert rows(path) == written
