import json
from pathlib import Path
from typing import Any

import pytest

from gradsurgery.documents.record import Curves, Record
from gradsurgery.errors import DataError


def curves_of(accuracies: list[float]) -> Curves:
    curves = Curves()
    for position, accuracy in enumerate(accuracies):
        curves.append(
            step=20 * (position + 1),
            train_loss=1.0,
            validation_loss=1.0,
            validation_accuracy=accuracy,
            agreeing=None,
            cosine=None,
        )
    return curves


@pytest.mark.parametrize(
    ("accuracies", "best"),
    [
        ([0.5], 0),
        ([0.1, 0.2, 0.3], 2),
        ([0.3, 0.2, 0.1], 0),
        ([0.1, 0.9, 0.9, 0.2, 0.9], 1),  # ties go to the earlier
        ([0.0, 0.0], 0),
    ],
)
def test_the_best_model_is_the_first_of_the_highest_accuracy(
    accuracies: list[float], best: int
) -> None:
    assert curves_of(accuracies).best() == best


def test_values_that_are_not_finite_become_null() -> None:
    curves = Curves()
    curves.append(
        step=1,
        train_loss=float("inf"),
        validation_loss=float("nan"),
        validation_accuracy=0.5,
        agreeing=0.25,
        cosine=float("nan"),
    )
    assert (curves.train_loss, curves.validation_loss, curves.cosine) == ([None], [None], [None])
    assert Curves.model_validate_json(curves.model_dump_json()) == curves


def test_curves_do_not_share_their_lists() -> None:
    curves_of([0.5])
    assert Curves().step == []


@pytest.mark.parametrize("content", [b"", b"{", b'{"version": 1}', b"\xff\xfe"])
def test_a_file_that_is_no_record_is_one_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"is not JSON|is no record of a run") as caught:
        Record.load(path)
    assert "\n" not in str(caught.value)


def changed(content: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """The content with another value at a place such as "data.domains"."""
    *outer, last = place.split(".")
    part = content
    for name in outer:
        part = part[name]
    part[last] = value
    return content


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("result.best.step", 10_000, r"result\.best\.step is none of the .* found 10000"),
        ("result.best.step", 0, r"result\.best\.step is none of the .* found 0"),
        ("result.last.step", 10_000, r"result\.last\.step is none of the .* found 10000"),
        ("result.best.averaged_from", 10_000, r"result\.best\.step is none of the"),
        ("data.domains", ["a", "b", "a"], "data: domains has 'a' twice"),
        ("data.classes", ["x", "x"], "data: classes has 'x' twice"),
    ],
)
def test_a_record_of_what_cannot_be_is_one_error(
    tmp_path: Path, place: str, value: Any, words: str
) -> None:
    path = next(Path(__file__).parent.glob("version1/runs/**/record.json"))
    content = changed(json.loads(path.read_text()), place, value)
    (tmp_path / "record.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=words) as caught:
        Record.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_steps_of_validations_increase(tmp_path: Path) -> None:
    path = next(Path(__file__).parent.glob("version1/runs/**/record.json"))
    content = json.loads(path.read_text())
    steps = content["curves"]["step"]
    content["curves"]["step"] = [steps[0]] * len(steps)
    (tmp_path / "record.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"curves\.step does not increase"):
        Record.load(tmp_path)
