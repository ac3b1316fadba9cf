"""What the steps did: learning curves, and figure 2, the similarity of gradients over training."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from gradsurgery.documents.studies import SimilarityStudy
from gradsurgery.report.figures.style import (
    GREY,
    PANEL_WIDTH,
    Drawing,
    MethodStyle,
    Styles,
    new_figure,
    set_heading,
    styled,
    tidy,
    wrapped,
)
from gradsurgery.report.gradients_text import summarize_similarity
from gradsurgery.report.section import listed
from gradsurgery.results.runs import Records, curves_frame
from gradsurgery.results.tables import ComparisonTable


class _Quantity(NamedTuple):
    """A column of the curves, what it is called, and the factor from the record to the axis."""

    column: str
    label: str
    factor: float = 1.0


_QUANTITIES = (
    _Quantity("train_loss", "training loss"),
    _Quantity("validation_accuracy", "validation accuracy (%)", 100.0),
    _Quantity("agreeing", "agreeing components (%)", 100.0),
)


_MOST_COLUMNS = 8
_MOST_MARKERS = 11
"""On a line: of more steps, some are marked, so that lines can be told apart in grey."""


def draw_learning_curves(table: ComparisonTable, records: Records, styles: Styles) -> Drawing:
    """Loss, validation accuracy and agreement over the steps, of the runs of a table."""
    over = "mean and standard deviation over the seeds" if len(table.seeds) > 1 else "one seed"
    figure = draw_curves(
        curves_frame(table.frame, records),
        table.methods,
        table.targets,
        styles,
        f"{table.name}: learning curves, {over}",
    )
    partial = any(not cell.complete for cell in table.cells.values())
    return Drawing(
        figure,
        f"Learning curves on {table.name}, a column a target. The training loss and the fraction "
        "of agreeing components are means over the steps since the validation before; the band is "
        "one standard deviation over the seeds on both sides."
        + (" Where seeds are missing, the line is of those that are there." if partial else ""),
        "Training loss, validation accuracy and, where it was recorded, the fraction of agreeing "
        f"components over the steps, for {listed(table.methods)} and the targets "
        f"{listed(table.targets)}.",
    )


@styled()
def draw_curves(
    curves: pd.DataFrame,
    methods: Sequence[str],
    targets: Sequence[str],
    styles: Styles,
    title: str = "",
) -> Figure:
    """A row of panels a quantity, a column a target, a line a method with its band.

    curves: as `curves_frame` gives them.
    The line is the mean over the seeds at a step, the band one sample standard deviation on both
    sides. A step that not every seed of the method has is left out. A quantity that no run has is
    left out altogether. More than eight targets are in several rows, whose axes are alike.
    """
    shown = [q for q in _QUANTITIES if curves[q.column].notna().any()] or [_QUANTITIES[0]]
    columns = min(len(targets), _MOST_COLUMNS)
    blocks = [targets[first : first + columns] for first in range(0, len(targets), columns)]
    figure, grid = new_figure(
        2.2 + max(columns, 2) * PANEL_WIDTH,
        max(1.0 + (1.35 * len(shown) + 0.3) * len(blocks) - 0.3, 0.8 + 0.18 * len(methods)),
        len(shown) * len(blocks),
        columns,
        share_y="row",
    )
    of_both = dict(iter(curves.groupby(["method", "target"])))
    for position, row in enumerate(grid):
        block, place = divmod(position, len(shown))
        quantity = shown[place]
        if block:
            row[0].sharey(grid[place, 0])
        for target, axes in zip(blocks[block], row, strict=False):
            for method in methods:
                if (method, target) in of_both:
                    _draw_line(axes, of_both[method, target], quantity, styles[method])
            _finish(axes, target, first=place == 0, last=place == len(shown) - 1)
        for unused in row[len(blocks[block]) :]:
            unused.set_axis_off()
        row[0].set_ylabel(wrapped(quantity.label, 20))
    handles = [
        Line2D([], [], color=s.color, ls=s.line, marker=s.marker, label=wrapped(method, 20))
        for method in methods
        for s in [styles[method]]
    ]
    figure.legend(handles=handles, loc="outside right center")
    set_heading(figure, title)
    return figure


def mean_and_spread(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean and sample standard deviation (NaN of one run) by step, where every seed has a value."""
    values = runs.pivot(index="step", columns="seed", values=column).astype(float)
    values = values.dropna().sort_index()
    return pd.DataFrame({"mean": values.mean(axis=1), "std": values.std(axis=1, ddof=1)})


def _draw_line(axes: Axes, runs: pd.DataFrame, quantity: _Quantity, style: MethodStyle) -> None:
    runs = runs[runs.groupby("seed")[quantity.column].transform("count") > 0]
    if runs.empty:
        return
    line = mean_and_spread(runs, quantity.column) * quantity.factor
    steps = line.index.to_numpy(dtype=float)
    mean, std = line["mean"].to_numpy(), line["std"].to_numpy()
    axes.plot(steps, mean, color=style.color, ls=style.line, marker=style.marker, markersize=2.5)
    axes.lines[-1].set_markevery(-(-len(steps) // _MOST_MARKERS))
    if np.isfinite(std).any():
        low, high = mean - std, mean + std
        axes.fill_between(steps, low, high, color=style.color, alpha=0.15, linewidth=0, zorder=1)


def _finish(axes: Axes, target: str, *, first: bool, last: bool) -> None:
    """Title, axis and grid of a panel of curves, in the first or the last of the rows."""
    tidy(axes)
    axes.margins(x=0.02)
    if first:
        axes.set_title(wrapped(target, 17, 2), loc="left")
    if last:
        axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axes.tick_params(labelbottom=last)
    if not axes.lines:
        middle = "axes fraction"
        axes.annotate("no run", (0.5, 0.5), xycoords=middle, ha="center", fontsize=6, color=GREY)
        axes.set_xticks([])


@styled()
def draw_similarity(study: SimilarityStudy) -> Figure:
    """Figure 2: mean cosine over the steps, within a domain against across domains.

    The thin lines are the runs. From three on, bands are the 95 % intervals over the runs, cut
    where they leave the range of the runs themselves.

    Raises `DataError` where the study compares no domains.

    Source: Mansilla et al. 2021, figure 2.
    """
    summary = summarize_similarity(study)
    figure, grid = new_figure(4.6, 2.7)
    axes = grid[0, 0]
    steps = [point.step for point in summary.curve]
    kinds = (("within", "#0072b2", "o", "-"), ("across", "#d55e00", "s", "--"))
    labels = {"within": "within a domain", "across": "across domains"}
    for name, color, marker, line in kinds:
        means = [getattr(point, name).mean for point in summary.curve]
        label = f"{labels[name]} ({getattr(summary, name).mean:z.3f})"
        axes.plot(steps, means, color=color, marker=marker, ls=line, markersize=3, label=label)
        for run in study.runs if len(study.runs) > 1 else ():
            measured = [m for m in run.measurements if getattr(m, name) is not None]
            values = [getattr(m, name) for m in measured]
            axes.plot([m.step for m in measured], values, color=color, linewidth=0.5, alpha=0.6)
    axes.set_ylim(axes.get_ylim())  # the lines matter; the bands of few runs would dwarf them
    for name, color, *_ in kinds if len(study.runs) > 2 else ():
        intervals = [getattr(point, name) for point in summary.curve]
        low = [i.mean if i.low is None else i.low for i in intervals]
        high = [i.mean if i.high is None else i.high for i in intervals]
        axes.fill_between(steps, low, high, color=color, alpha=0.12, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("training step")
    axes.set_ylabel("mean cosine similarity")
    count, options = len(study.runs), study.configuration
    what = f"{study.data}, {options.backbone}, {options.method}, {options.target} held out"
    runs = "1 run" if count == 1 else f"{count} runs (thin lines)"
    bands = ", bands: 95 % intervals" if count > 2 else ""
    title = wrapped(f"{what}, {runs}{bands}", 80)
    axes.set_title(title, fontsize=7, fontweight="normal", color=GREY, loc="left")
    axes.legend(loc="best")
    tidy(axes)
    return figure
