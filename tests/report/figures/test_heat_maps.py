from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from gradsurgery.documents.studies import (
    Diagnosis,
    DiagnosisOptions,
    GroupConflict,
    LoggedConflict,
    Numbers,
    Snapshot,
)
from gradsurgery.documents.tally import Tally
from gradsurgery.report.figures.heat_maps import (
    conflict_figures,
    confusion_figure,
    heat_map,
    logged_figure,
)
from gradsurgery.report.figures.style import encoded


def group(name: str, agreeing: float | None, against: Numbers) -> GroupConflict:
    return GroupConflict(
        name=name,
        components=10,
        moving=1.0,
        agreeing=agreeing,
        against_rest=against,
        cosines=[[1.0, -0.25], [-0.25, 1.0]],
        cosine_with_rest=[-0.25, -0.25],
        kept_length=0.5,
    )


def diagnosis(steps: list[int], logged: LoggedConflict | None = None) -> Diagnosis:
    snapshots = [
        Snapshot(
            step=step,
            total=group("whole network", 0.31, [0.6, 0.7]),
            groups=[group("features.0", 0.25, [0.62, 0.74]), group("fc", None, [None, None])],
            most_conflicting="b",
            times_most=1,
            shuffled_agreeing=0.42,
            shuffled_cosine=0.1,
        )
        for step in steps
    ]
    return Diagnosis(
        data="made",
        domains=["a", "b"],
        target="c",
        network="a network",
        options=DiagnosisOptions(repeats=1),
        snapshots=snapshots,
        logged=logged,
    )


def texts(figure) -> list[str]:
    (axes,) = figure.axes
    return [text.get_text() for text in sorted(axes.texts, key=lambda t: t.get_position()[::-1])]


def test_cells_hold_their_values() -> None:
    figures = conflict_figures(diagnosis([0, 10]))
    assert list(figures) == ["diagnosis-domains", "diagnosis-layers", "diagnosis-training"]
    assert texts(figures["diagnosis-domains"]) == ["1.00", "−0.25", "−0.25", "1.00"]
    assert texts(figures["diagnosis-layers"]) == [
        *("25", "62", "74"),
        *("–", "–", "–"),
        *("31", "60", "70"),
    ]
    assert texts(figures["diagnosis-training"]) == ["25", "25", "–", "–", "31", "31", "42", "42"]


def test_rows_are_named() -> None:
    (axes,) = conflict_figures(diagnosis([0]))["diagnosis-layers"].axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["features.0", "fc", "whole network"]


def test_a_run_s_log_is_drawn_where_there_is_one_look() -> None:
    logged = LoggedConflict(
        step=[5, 10], agreeing=[0.2, None], cosine=[None, None], groups={"fc": [0.3, 0.4]}
    )
    figures = conflict_figures(diagnosis([10], logged))
    assert texts(figures["diagnosis-training"]) == ["30", "40", "20", "–"]
    assert list(conflict_figures(diagnosis([10], LoggedConflict()))) == [
        "diagnosis-domains",
        "diagnosis-layers",
    ]


def test_of_many_steps_sixteen_are_shown() -> None:
    steps = list(range(1, 101))
    logged = LoggedConflict(
        step=steps, agreeing=[0.5] * 100, cosine=[None] * 100, groups={"fc": [0.5] * 100}
    )
    (axes,) = logged_figure(logged).axes
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert (len(shown), shown[0], shown[-1]) == (16, "1", "100")


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_the_same_diagnosis_gives_the_same_bytes(kind, tmp_path: Path) -> None:
    first, second = (conflict_figures(diagnosis([0]))["diagnosis-layers"] for _ in range(2))
    assert encoded(first, kind) == encoded(second, kind)


def confusion(classes: int) -> Figure:
    tally = Tally(confusion=[f"{label}:3" for label in range(classes)])
    return confusion_figure(tally, [f"c{label}" for label in range(classes)], "made")


def test_a_matrix_of_many_classes_stays_of_a_size_that_can_be_drawn() -> None:
    (axes,) = confusion(40).axes
    assert {text.get_text() for text in axes.texts} == {"100", "–"}
    assert len(axes.get_xticks()) == 40
    for classes, every in ((41, 1), (65, 1), (345, 3)):  # Office-Home has 65, DomainNet 345
        figure = confusion(classes)
        (axes,) = figure.axes
        assert max(figure.get_size_inches()) < 20
        assert not axes.texts
        assert [label.get_text() for label in axes.get_xticklabels()] == [
            f"c{label}" for label in range(0, classes, every)
        ]
        assert [label.get_text() for label in axes.get_yticklabels()] == [
            f"c{label} (3)" for label in range(0, classes, every)
        ]
        assert ("one name in 3 is shown" in axes.get_title(loc="left")) == (every == 3)
        assert axes.images[0].get_array().shape == (classes, classes)


def test_a_few_layers_of_hundreds_of_domains_are_no_roll_of_paper() -> None:
    """Five rows and 301 columns are fewer cells than some matrices with a number in each."""
    for columns, every in ((40, 1), (61, 1), (301, 3)):
        figure, axes = heat_map(np.zeros((5, columns)), ["layer"] * 5, ["d"] * columns, "made")
        assert max(figure.get_size_inches()) < 30
        assert bool(axes.texts) == (columns == 40)
        assert len(axes.get_xticks()) == -(-columns // every)
