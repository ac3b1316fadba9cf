"""What is counted of a pass, against counting by hand."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gradsurgery.documents.tally import Tally

Case = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]


@st.composite
def answers(draw, least: int = 1) -> Case:
    classes = draw(st.integers(1, 5))
    count = draw(st.integers(least, 40))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    label, predicted = random.integers(0, classes, (2, count))
    confidence = random.choice([0.2, 1 / 15, 14 / 15, 1.0, 0.73], count).astype(np.float32)
    return label, predicted, confidence, random.exponential(size=count), classes


@given(answers())
def test_every_image_is_in_one_cell_and_in_one_bin(case: Case) -> None:
    label, predicted, confidence, loss, classes = case
    tally = Tally.of(*case)
    expected = np.zeros((classes, classes), int)
    for a, b in zip(label, predicted, strict=True):
        expected[a, b] += 1
    assert (tally.matrix() == expected).all()
    assert (tally.images, tally.accuracy) == (len(label), (label == predicted).mean())
    bins = np.zeros((16, 3))
    edges = np.linspace(0, 1, 16, dtype=np.float32)
    for a, b, c in zip(label, predicted, confidence, strict=True):
        place = max(i for i, edge in enumerate(edges) if edge <= c)
        bins[place] += 1, a == b, c
    assert np.allclose(tally.bins(), bins, rtol=1e-6)
    assert tally.log_loss == pytest.approx(loss.mean())
    assert tally.log_loss_deviation == pytest.approx(loss.std())
    assert Tally.model_validate_json(tally.model_dump_json(), strict=True) == tally


@given(answers(), st.integers(1, 6))
def test_groups_are_counted_as_the_images_are(case: Case, groups: int) -> None:
    label, predicted, confidence, loss, _ = case
    group = np.arange(len(label)) * 7 % groups
    tally = Tally.of(*case, group=group)
    numbers = np.unique(group).tolist()
    assert len(tally.groups) == len(numbers)
    edges = np.linspace(0, 1, 16, dtype=np.float32)
    expected = Counter()
    for n, a, b, c in zip(group.tolist(), label, predicted, confidence, strict=True):
        place = max(i for i, edge in enumerate(edges) if edge <= c)
        expected[numbers.index(n), a, b, place] += 1
    assert Counter({tuple(row[:4]): row[4] for row in tally.cells().tolist()}) == expected
    assert tally.group_losses == pytest.approx([loss[group == n].mean() for n in numbers])
    assert tally.in_groups == (len(numbers) < len(label))
    assert Tally.model_validate_json(tally.model_dump_json(), strict=True) == tally
    twice = Tally.merged([tally, tally])
    assert len(twice.groups) == 2 * len(numbers)
    assert Tally.merged([tally, Tally.of(*case)]).groups == []  # of some nothing is known


@given(answers(), st.lists(st.integers(0, 40), max_size=3))
def test_parts_merge_to_the_whole(case: Case, cuts: list[int]) -> None:
    *columns, classes = case
    ends = sorted(min(cut, len(columns[0])) for cut in cuts)
    parts = zip(*(np.split(column, ends) for column in columns), strict=True)
    merged, whole = Tally.merged([Tally.of(*part, classes) for part in parts]), Tally.of(*case)
    assert merged.confusion == whole.confusion
    assert np.allclose(merged.bins(), whole.bins(), rtol=1e-6)
    assert merged.log_loss == pytest.approx(whole.log_loss)
    assert merged.log_loss_deviation == pytest.approx(whole.log_loss_deviation, abs=1e-9)


def test_predictions_that_are_not_finite_have_no_calibration() -> None:
    nan = np.array([np.nan, 0.5], np.float32)
    tally = Tally.of(np.array([0, 1]), np.array([0, 0]), nan, nan, 2)
    assert (tally.calibration, tally.log_loss) == ([], None)
    assert tally.accuracy == 0.5


def test_nothing_has_no_accuracy() -> None:
    assert math.isnan(Tally(confusion=["", ""]).accuracy)


@pytest.mark.parametrize(
    "content",
    [
        {"confusion": ["2:1", ""]},
        {"confusion": ["0:-1"]},
        {"confusion": ["zero"]},
        {"confusion": ["0:1"], "calibration": ["17 1 1 0.5"]},
        {"confusion": ["0:1"], "calibration": ["3 1 2 0.5"]},
        {"confusion": ["0:1"], "calibration": ["3 2 1 1.5"]},
        {"confusion": ["0:1"], "calibration": ["3 2 1 e.e"]},
        {"confusion": ["0:2"], "calibration": ["3 1 1 0.25"]},
        {"confusion": ["0:1 1:1", ""], "calibration": ["9 2 2 0.625"]},
        {"confusion": ["0:1"], "groups": ["0>0@3:2"]},
        {"confusion": ["0:1"], "groups": ["0>1@3:1"]},
        {"confusion": ["0:1"], "groups": ["0>0@16:1"]},
        {"confusion": ["0:1"], "groups": ["0>0:1"]},
        {"confusion": ["0:2"], "groups": ["0>0@3:1", "0>0@4:1"], "group_losses": [0.5]},
        {"confusion": ["0:1"], "group_losses": [0.5]},
    ],
)
def test_counts_that_cannot_be_are_refused(content: dict) -> None:
    with pytest.raises(ValidationError):
        Tally.model_validate(content, strict=True)


@given(answers())
def test_it_fits_its_own_accuracy_and_no_other(case: Case) -> None:
    label, predicted, *_, classes = case
    tally, accuracy = Tally.of(*case), float((label == predicted).mean())
    tally.check_fits("a", classes, len(label), accuracy)
    with pytest.raises(ValueError, match=f"of {len(label)} images, its split's 0"):
        tally.check_fits("a", classes, 0, accuracy)
    with pytest.raises(ValueError, match=f"a are of {classes} classes"):
        tally.check_fits("a", classes + 1, None, accuracy)
    for other in (accuracy + 0.001, None):
        right = f"right on {(label == predicted).sum()} of {len(label)} images"
        with pytest.raises(ValueError, match=f"of a is {other}, and its tests are {right}"):
            tally.check_fits("a", classes, None, other)


def test_a_record_s_tally_is_small() -> None:
    """Of 780 images and 65 classes, a third of them wrong: under 8 kB as text."""
    random = np.random.default_rng(0)
    label = random.integers(0, 65, 780)
    predicted = np.where(random.random(780) < 0.33, random.integers(0, 65, 780), label)
    confidence = random.random(780).astype(np.float32)
    assert len(Tally.of(label, predicted, confidence, confidence, 65).model_dump_json()) < 8000
