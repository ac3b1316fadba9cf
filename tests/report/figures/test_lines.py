import math

import numpy as np
import pandas as pd
import pytest

from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.studies import SimilarityStudy
from gradsurgery.errors import DataError
from gradsurgery.report.figures.lines import draw_curves, draw_similarity, mean_and_spread
from gradsurgery.report.figures.style import method_styles


def frame(*runs):
    """A row a validation from (method, target, seed, losses at steps 20, 40, …)."""
    return pd.DataFrame(
        {
            "method": method,
            "target": target,
            "seed": seed,
            "step": 20 * (i + 1),
            "train_loss": loss,
            "validation_accuracy": 0.5,
            "agreeing": math.nan,
        }
        for method, target, seed, losses in runs
        for i, loss in enumerate(losses)
    )


def drawn(runs, methods, targets):
    return draw_curves(runs, methods, targets, method_styles(methods))


def panels(figure, label):
    """The axes of one row, by the target that stands above its column."""
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    targets = [title for title in titles if title]
    rows = [figure.axes[i : i + len(targets)] for i in range(0, len(figure.axes), len(targets))]
    row = next(axes for axes in rows if axes[0].get_ylabel().replace("\n", " ") == label)
    return dict(zip(targets, row, strict=True))


def test_the_line_is_the_mean_and_the_band_one_standard_deviation():
    runs = frame(("agr-sum", "photo", 0, [2.0, 1.0]), ("agr-sum", "photo", 1, [4.0, 1.0]))
    figure = drawn(runs, methods=["agr-sum"], targets=["photo"])
    axes = panels(figure, "training loss")["photo"]
    (line,) = axes.lines
    assert line.get_xydata().tolist() == [[20, 3], [40, 1]]
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    at_20 = corners[corners[:, 0] == 20][:, 1]
    # deviations of 2 and 4 from 3: sqrt((1 + 1) / 1)
    assert (at_20.min(), at_20.max()) == pytest.approx((3 - math.sqrt(2), 3 + math.sqrt(2)))


def test_lines_of_many_steps_are_marked_too():
    runs = frame(("agr-sum", "photo", 0, [1.0] * 50), ("pcgrad", "photo", 0, [2.0] * 50))
    figure = drawn(runs, methods=["agr-sum", "pcgrad"], targets=["photo"])
    lines = panels(figure, "training loss")["photo"].lines
    handles = figure.legends[0].legend_handles
    assert [line.get_marker() for line in lines] == [each.get_marker() for each in handles]
    assert len({line.get_marker() for line in lines} - {None, "None"}) == 2
    assert all(50 / line.get_markevery() <= 11 for line in lines)


def test_many_targets_are_in_several_rows_with_axes_alike():
    targets = [f"t{number}" for number in range(11)]
    losses = {target: [float(number + 1)] for number, target in enumerate(targets)}
    runs = frame(*(("agr-sum", target, 0, loss) for target, loss in losses.items()))
    figure = drawn(runs, methods=["agr-sum"], targets=targets)
    shown = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in shown] == targets
    assert [axes.lines[0].get_ydata().tolist() for axes in shown] == [*losses.values()]
    rows = [axes.get_subplotspec().rowspan.start for axes in shown]
    assert rows == [0] * 8 + [2] * 3  # the accuracies between them, and below
    assert len({axes.get_ylim() for axes in shown}) == 1
    assert figure.get_figwidth() < 16


def test_accuracies_are_in_percent_and_a_quantity_nobody_has_is_absent():
    figure = drawn(frame(("deep-all", "photo", 0, [1.0])), methods=["deep-all"], targets=["photo"])
    accuracy = panels(figure, "validation accuracy (%)")["photo"]
    assert accuracy.lines[0].get_ydata().tolist() == [50]
    assert len(figure.axes) == 2


def test_one_run_has_no_band_and_a_target_without_runs_says_so():
    figure = drawn(
        frame(("agr-sum", "photo", 0, [2.0, 1.0])), methods=["agr-sum"], targets=["photo", "b"]
    )
    row = panels(figure, "training loss")
    assert not row["photo"].collections
    assert [text.get_text() for text in row["b"].texts] == ["no run"]


def test_steps_that_not_every_seed_has_are_left_out():
    runs = frame(("m", "t", 0, [1.0, 2.0, math.nan]), ("m", "t", 1, [3.0, 4.0, 5.0]))
    shorter = pd.concat([runs, frame(("m", "t", 2, [5.0]))])
    assert mean_and_spread(runs, "train_loss")["mean"].to_dict() == {20: 2, 40: 3}
    assert mean_and_spread(shorter, "train_loss")["mean"].to_dict() == {20: 3}
    assert np.isnan(mean_and_spread(runs[runs.seed == 0], "train_loss")["std"]).all()


def test_the_legend_names_every_method():
    runs = frame(*((f"method {i}", "t", 0, [1.0]) for i in range(12)))
    methods = [f"method {i}" for i in range(12)]
    figure = drawn(runs, methods=methods, targets=["t"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == methods


def study(within: list[float], runs: int) -> SimilarityStudy:
    measurements = [
        {
            "step": 10 * place,
            "label": "cat",
            "domains": ["a", "b"],
            "cosines": [[value, 0.1], [0.1, value]],
            "within": value,
            "across": 0.1,
        }
        for place, value in enumerate(within)
    ]
    return SimilarityStudy.model_validate(
        {
            "data": "made",
            "domains": ["a", "b"],
            "classes": ["cat"],
            "configuration": RunConfiguration(data="made", target="c"),
            "options": {},
            "runs": [{"seed": seed, "measurements": measurements} for seed in range(runs)],
        }
    )


@pytest.mark.parametrize(("runs", "lines", "bands"), [(1, 2, 0), (2, 2 + 4, 0), (3, 2 + 6, 2)])
def test_lines_are_the_means_and_the_runs(runs: int, lines: int, bands: int) -> None:
    (axes,) = draw_similarity(study([0.3, 0.5], runs)).axes
    assert (len(axes.lines), len(axes.collections)) == (lines, bands)
    within = axes.lines[0]
    assert list(within.get_xdata()) == [0, 10]
    assert list(within.get_ydata()) == pytest.approx([0.3, 0.5])
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["within a domain (0.400)", "across domains (0.100)"]
    told = axes.get_title(loc="left")
    assert ("(thin lines)" in told, "95 % intervals" in told) == (runs > 1, bands > 0)


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(DataError, match="no measurement of made compares domains"):
        draw_similarity(study([], 1))


def test_ticks_are_steps() -> None:
    """Measured at 0 and 5 there would be a tick at 2.5."""
    made = study([0.3, 0.5], 1)
    for run in made.runs:
        run.measurements[1].step = 5
    (axes,) = draw_similarity(made).axes
    assert all(float(tick).is_integer() for tick in axes.get_xticks())
