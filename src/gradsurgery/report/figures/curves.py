"""Learning curves: what the steps did, as mean and spread over the seeds, by method and target."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from gradsurgery.report.figures.accuracy import Styles
from gradsurgery.report.figures.panels import PANEL_WIDTH, set_heading
from gradsurgery.report.figures.style import (
    GREY,
    MethodStyle,
    method_styles,
    new_figure,
    styled,
    tidy,
    wrapped,
)


class Quantity(NamedTuple):
    """A column of the curves, what it is called, and the factor from the record to the axis."""

    column: str
    label: str
    factor: float = 1.0


QUANTITIES = (
    Quantity("train_loss", "training loss"),
    Quantity("validation_accuracy", "validation accuracy (%)", 100.0),
    Quantity("agreeing", "agreeing components (%)", 100.0),
)


@styled()
def draw_curves(
    curves: pd.DataFrame,
    *,
    methods: Sequence[str],
    targets: Sequence[str],
    quantities: Sequence[Quantity] = QUANTITIES,
    styles: Styles | None = None,
    title: str = "",
    note: str = "",
) -> Figure:
    """A row of panels a quantity, a column a target, a line a method with its band.

    curves: a row a validation, with the columns method, target, seed, step and the quantities'.
    The line is the mean over the seeds at a step, the band one sample standard deviation on both
    sides. A step that not every seed of the method has is left out. A quantity that no run has is
    left out altogether.
    styles: how the methods are drawn; by default as `method_styles(methods)` says.
    """
    shown = [q for q in quantities if q.column in curves and curves[q.column].notna().any()]
    shown = shown or list(quantities[:1])
    styles = styles or method_styles(methods)
    figure, grid = new_figure(
        2.2 + max(len(targets), 2) * PANEL_WIDTH,
        max(1.0 + 1.35 * len(shown), 0.8 + 0.18 * len(methods)),
        len(shown),
        len(targets),
        share_y="row",
    )
    of_both = dict(iter(curves.groupby(["method", "target"])))
    for row, quantity in zip(grid, shown, strict=True):
        for target, axes in zip(targets, row, strict=True):
            for method in methods:
                if (method, target) in of_both:
                    _draw_line(axes, of_both[method, target], quantity, styles[method])
            tidy(axes)
            axes.margins(x=0.02)
            if axes.get_subplotspec().is_first_row():
                axes.set_title(wrapped(target, 17, 2), loc="left")
            if axes.get_subplotspec().is_last_row():
                axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
            axes.tick_params(labelbottom=axes.get_subplotspec().is_last_row())
            if not axes.lines:
                axes.annotate(
                    "no run",
                    (0.5, 0.5),
                    xycoords="axes fraction",
                    ha="center",
                    fontsize=6,
                    color=GREY,
                )
                axes.set_xticks([])
        row[0].set_ylabel(wrapped(quantity.label, 20))
    handles = [_handle(method, styles[method]) for method in methods]
    figure.legend(handles=handles, loc="outside right center")
    set_heading(figure, title, note)
    return figure


def mean_and_spread(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean and sample standard deviation (NaN of one run) by step, where every seed has a value."""
    values = runs.pivot(index="step", columns="seed", values=column).astype(float)
    values = values.dropna().sort_index()
    return pd.DataFrame({"mean": values.mean(axis=1), "std": values.std(axis=1, ddof=1)})


def _draw_line(axes: Axes, runs: pd.DataFrame, quantity: Quantity, style: MethodStyle) -> None:
    having = runs.groupby("seed")[quantity.column].transform("count") > 0
    runs = runs[having]
    if runs.empty:
        return
    line = mean_and_spread(runs, quantity.column) * quantity.factor
    steps = line.index.to_numpy(dtype=float)
    mean, std = line["mean"].to_numpy(), line["std"].to_numpy()
    few = len(steps) < 12
    axes.plot(
        steps,
        mean,
        color=style.color,
        linestyle=style.line,
        marker=style.marker if few else None,
        markersize=2.5,
    )
    if np.isfinite(std).any():
        axes.fill_between(
            steps, mean - std, mean + std, color=style.color, alpha=0.15, linewidth=0, zorder=1
        )


def _handle(method: str, style: MethodStyle) -> Line2D:
    label = wrapped(method, 20, 3)
    return Line2D([], [], color=style.color, linestyle=style.line, label=label, markersize=3)
