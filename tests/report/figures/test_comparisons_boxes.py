import numpy as np
import pandas as pd
import pytest

from gradsurgery.report.figures.comparisons import draw_accuracies, draw_batches
from gradsurgery.report.figures.style import encoded, method_styles
from gradsurgery.results import Cell, ComparisonTable
from gradsurgery.results.statistics import PairedComparison

RUNS = {
    ("deep-all", "photo"): [80.0, 82.0, 81.0, 85.0],
    ("deep-all", "sketch"): [50.0, 54.0, 51.0, 53.0],
    ("agr-sum", "photo"): [80.0, 81.5],
    ("agr-sum", "sketch"): [56.0, 57.5, 59.0, 58.0],
}
STAR = PairedComparison(5.0, 4.0, 6.0, 0.03, 0.06, 1.0, 6, 0)


def table_of(runs, *, seeds=4, stars=(), baseline="deep-all", methods=None, targets=None):
    """A table of accuracies in percent by method and target; `stars` have p < 0.05."""
    cells = {
        key: Cell(tuple(values), seeds, comparison=STAR if key in stars else None)
        for key, values in runs.items()
    }
    return ComparisonTable(
        data="pacs",
        protocol={},
        differences={},
        model="best",
        baseline=baseline,
        methods=tuple(methods or dict.fromkeys(method for method, _ in runs)),
        targets=tuple(targets or dict.fromkeys(target for _, target in runs)),
        seeds=tuple(range(seeds)),
        cells=cells,
        averages={},
        frame=pd.DataFrame(),
    )


def drawn(runs=RUNS, **options):
    table = table_of(runs, **options)
    return draw_accuracies(table, method_styles(table.methods)).figure


def panel(figure, target):
    return next(axes for axes in figure.axes if axes.get_title(loc="left") == target)


def texts(axes):
    return {text.get_text(): text.xy for text in axes.texts}


def medians(axes):
    """Position to value of the thick lines in the boxes."""
    found = {}
    for line in axes.lines:
        x, y = (np.asarray(values, dtype=float) for values in line.get_data())
        if line.get_linewidth() == 2.0:
            found[round(float(y.mean()), 9)] = float(x[0])
    return found


def test_medians_and_quartiles_are_numpys():
    axes = panel(drawn(), "sketch")
    assert medians(axes) == {
        row: pytest.approx(np.median(RUNS[method, "sketch"]))
        for row, method in enumerate(["deep-all", "agr-sum"])
    }
    for row, patch in enumerate(axes.patches):
        x = patch.get_path().vertices[:, 0]
        values = RUNS[["deep-all", "agr-sum"][row], "sketch"]
        assert (x.min(), x.max()) == pytest.approx(tuple(np.percentile(values, [25, 75])))


def test_every_run_is_a_point():
    axes = panel(drawn(), "sketch")
    points = [line for line in axes.lines if line.get_linestyle() == "None"]
    assert [list(line.get_xdata()) for line in points] == [
        RUNS["deep-all", "sketch"],
        RUNS["agr-sum", "sketch"],
    ]
    assert all(abs(y - row) < 0.3 for row, line in enumerate(points) for y in line.get_ydata())


def test_the_star_stands_beside_its_box_and_nowhere_else():
    figure = drawn(stars=[("agr-sum", "sketch")])
    assert texts(panel(figure, "sketch"))["*"] == (59.0, 1)
    assert "*" not in texts(panel(figure, "photo"))


def test_a_cell_that_lacks_seeds_says_so_and_never_has_a_star():
    axes = panel(drawn(stars=[("agr-sum", "photo")]), "photo")
    assert texts(axes)["2 of 4"] == (81.5, 1)
    assert "*" not in texts(axes)
    assert medians(axes)[1] == pytest.approx(80.75)


def test_a_missing_cell_says_so():
    axes = panel(drawn(methods=["deep-all", "pcgrad"]), "sketch")
    assert "no run" in texts(axes)


def test_a_dashed_line_is_the_references_median_where_that_is_complete():
    def dashed(figure, target):
        return [line for line in panel(figure, target).lines if list(line.get_ydata()) == [0, 1]]

    (line,) = dashed(drawn(), "sketch")
    assert list(line.get_xdata()) == [52.0, 52.0]
    assert "Dashed line: median of deep-all." in drawn().get_supxlabel().replace("\n", " ")
    one_seed = {("deep-all", "sketch"): [50.0], ("agr-sum", "sketch"): [60.0]}
    assert "Dashed line" in drawn(one_seed, seeds=1).get_supxlabel()  # without a test, too
    assert "Dashed" not in drawn(baseline="irm").get_supxlabel()
    assert not dashed(drawn(baseline="agr-sum"), "photo")
    assert not dashed(drawn(baseline="irm"), "sketch")


def test_rows_are_named_from_the_top_down():
    axes = panel(drawn(), "photo")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["deep-all", "agr-sum"]
    assert axes.yaxis_inverted()
    assert axes.get_xlabel() == "target accuracy (%)"


@pytest.mark.parametrize("count", [1, 4, 6, 9])
def test_every_target_has_a_panel_with_an_axis_below_a_hundred(count):
    targets = [f"domain {i}" for i in range(count)]
    figure = drawn({("agr-sum", target): [99.9] for target in targets}, seeds=1)
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in panels] == targets
    assert all(max(axes.get_xticks()) <= 100 for axes in panels)


def test_twelve_methods_with_long_names_and_the_same_bytes_again():
    methods = [f"mixup+agr-sum (mixup.alpha=0.{i}, $and$ <more>)" for i in range(12)]
    runs = {(method, "sketch"): [50.0 + i, 51.0, 52.0] for i, method in enumerate(methods)}

    def again():
        return encoded(drawn(runs, seeds=3), "svg")

    assert again() == again()


def test_figure_4_has_multi_domain_batches_above_single_domain_ones():
    multi = {("agr-sum", "sketch"): [60.0, 62.0, 64.0], ("agr-rand", "sketch"): [60.0, 61.0]}
    single = {("agr-sum", "sketch"): [50.0, 51.0, 55.0]}
    methods = ["agr-sum", "agr-rand"]
    both = [table_of(runs, seeds=3, methods=methods) for runs in (multi, single)]
    figure = draw_batches(*both, method_styles(methods)).figure
    axes = panel(figure, "sketch")
    assert medians(axes) == {-0.2: 62.0, 0.2: 51.0, 0.8: 60.5}
    assert {"2 of 3", "no run (single)"} <= set(texts(axes))
    filled, hollow = axes.patches
    assert hollow.get_facecolor() == (1, 1, 1, 1)
    assert (filled.get_linestyle(), hollow.get_linestyle()) == ("-", "--")
    assert filled.get_facecolor() != (1, 1, 1, 1)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["multi-domain\nbatches", "single-domain\nbatches"]


def test_figure_4_needs_a_method_and_a_target_in_both():
    one, two = ({(method, "sketch"): [1.0]} for method in ("agr-sum", "pcgrad"))
    both = [table_of(runs, seeds=1) for runs in (one, two)]
    assert draw_batches(*both, method_styles(["agr-sum", "pcgrad"])) is None


def test_styles_may_be_given():
    styles = method_styles(["pcgrad"])
    table = table_of({("agr-sum", "photo"): [1.0, 2.0, 3.0]}, seeds=3)
    figure = draw_accuracies(table, {"agr-sum": styles["pcgrad"]}).figure
    assert panel(figure, "photo").lines[0].get_color() == styles["pcgrad"].color
