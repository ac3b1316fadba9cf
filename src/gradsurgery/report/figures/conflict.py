"""Heat maps of a diagnosis: between domains, by layers, and over training."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gradsurgery.documents.diagnosis import Diagnosis, LoggedConflict, Numbers
from gradsurgery.report.figures.style import (
    DIVERGING,
    GREY,
    SEQUENTIAL,
    new_figure,
    styled,
    wrapped,
)

_CELL = 0.62
"""Inches."""


def conflict_figures(diagnosis: Diagnosis) -> dict[str, Figure]:
    """All there are of a diagnosis, by the name of their file."""
    figures = {
        "diagnosis-domains": cosine_figure(diagnosis),
        "diagnosis-layers": layer_figure(diagnosis),
    }
    if len(diagnosis.snapshots) > 1:
        figures["diagnosis-training"] = training_figure(diagnosis)
    elif diagnosis.logged is not None and diagnosis.logged.groups:
        figures["diagnosis-training"] = logged_figure(diagnosis.logged)
    return figures


@styled()
def cosine_figure(diagnosis: Diagnosis) -> Figure:
    """The matrix of cosine similarities between the domains' gradients, of the last snapshot."""
    domains = [wrapped(domain, 12) for domain in diagnosis.domains]
    values = _array(diagnosis.snapshots[-1].total.cosines)
    figure, axes = _sized(len(domains), len(domains), height=_CELL)
    _draw_map(axes, values, domains, domains, colors=(DIVERGING, -1.0, 1.0), form="{:.2f}")
    axes.set_title("cosine similarity of the domains' gradients", loc="left", fontsize=8)
    return figure


@styled()
def layer_figure(diagnosis: Diagnosis) -> Figure:
    """Per cent of the components that agree, and of those of each domain against the rest.

    By layers, from the input, at the top, to the output; the last row is the whole network.
    """
    last = diagnosis.snapshots[-1]
    groups = [*last.groups, last.total]
    rows = [wrapped(group.name, 26, 2) for group in groups]
    columns = [
        "agree",
        *(f"{wrapped(domain, 12)}\nagainst\nthe rest" for domain in diagnosis.domains),
    ]
    values = 100 * _array([[group.agreeing, *group.against_rest] for group in groups])
    figure, axes = _sized(len(rows), len(columns))
    _draw_map(axes, values, rows, columns, colors=_up_to_highest(values), form="{:.0f}")
    axes.axhline(len(groups) - 1.5, color="white", linewidth=2.5)
    axes.axvline(0.5, color="white", linewidth=2.5)
    axes.set_title("components (%)", loc="left", fontsize=8)
    return figure


@styled()
def training_figure(diagnosis: Diagnosis) -> Figure:
    """Per cent of components that agree, by layers and step, of a diagnosis with several steps."""
    snapshots = diagnosis.snapshots
    names = [group.name for group in snapshots[-1].groups]
    rows = [*(wrapped(name, 26, 2) for name in names), "whole network", "dealt out at random"]
    steps = [str(snapshot.step) for snapshot in snapshots]
    columns = [
        [
            *(group.agreeing for group in snapshot.groups),
            snapshot.total.agreeing,
            snapshot.shuffled_agreeing,
        ]
        for snapshot in snapshots
    ]
    values = 100 * _array(columns).T
    figure, axes = _sized(len(rows), len(steps))
    _draw_map(axes, values, rows, steps, colors=_up_to_highest(values), form="{:.0f}")
    axes.axhline(len(names) - 0.5, color="white", linewidth=2.5)
    axes.set_xlabel("training step")
    axes.xaxis.set_label_position("top")
    axes.set_title("components that agree (%)", loc="left", fontsize=8)
    return figure


@styled()
def logged_figure(logged: LoggedConflict) -> Figure:
    """Per cent of components that agree, by layers and step, as a run logged them.

    Of more than 16 steps, 16 are shown, evenly spread.
    """
    rows = [*(wrapped(name, 26, 2) for name in logged.groups), "whole network"]
    count = len(logged.step)
    shown = np.unique(np.linspace(0, count - 1, min(count, 16)).round().astype(int))
    values = 100 * _array([*logged.groups.values(), logged.agreeing])[:, shown]
    steps = [str(logged.step[place]) for place in shown]
    figure, axes = _sized(len(rows), len(steps))
    _draw_map(axes, values, rows, steps, colors=_up_to_highest(values), form="{:.0f}")
    axes.axhline(len(logged.groups) - 0.5, color="white", linewidth=2.5)
    axes.set_xlabel("training step")
    axes.xaxis.set_label_position("top")
    axes.set_title("components that agree (%), logged by the run", loc="left", fontsize=8)
    return figure


def _array(values: Sequence[Numbers]) -> NDArray[np.float64]:
    return np.array([[np.nan if v is None else v for v in row] for row in values], dtype=np.float64)


def _sized(rows: int, columns: int, *, height: float = 0.3) -> tuple[Figure, Axes]:
    figure, grid = new_figure(2.1 + columns * _CELL, 1.1 + rows * height)
    return figure, grid[0, 0]


def _up_to_highest(values: NDArray[np.float64]) -> tuple[str, float, float]:
    """Colours for per cent from 0 to the next ten above the highest."""
    return SEQUENTIAL, 0.0, max(10.0, 10 * np.ceil(np.nanmax(np.append(values, 0)) / 10))


def _draw_map(
    axes: Axes,
    values: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    colors: tuple[str, float, float],
    form: str,
) -> None:
    """Coloured cells with their values in them; a missing one is empty."""
    name, low, high = colors
    image = axes.imshow(values, cmap=name, vmin=low, vmax=high, aspect="auto")
    axes.grid(visible=False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0, labelsize=7)
    axes.xaxis.tick_top()
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):
            axes.text(column, row, "–", ha="center", va="center", color=GREY)
            continue
        red, green, blue, _ = image.to_rgba(np.array([value]))[0]
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
        color = "white" if dark else "black"
        text = form.format(value).replace("-", "−")
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=7)
