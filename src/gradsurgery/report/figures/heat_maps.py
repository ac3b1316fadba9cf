"""Heat maps of a diagnosis and of a classifier, and how far its confidence can be trusted."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gradsurgery.documents.studies import Diagnosis, LoggedConflict, Numbers
from gradsurgery.documents.tally import BINS, Tally
from gradsurgery.report.figures.style import (
    DIVERGING,
    GREY,
    SEQUENTIAL,
    new_figure,
    set_heading,
    styled,
    wrapped,
)
from gradsurgery.results.classification import accuracy_by_bin

Values = NDArray[np.float64]

_CELL = 0.62  # inches
_BLUE = "#0072b2"
_MOST_NUMBERS = 40**2
"""Cells up to which a number is in each."""
_CROWDED = 15.0
"""Inches that many rows, or columns, of cells without numbers take together."""
_MOST_NAMES = 120
"""Of such rows or columns."""


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
    title, how = "cosine similarity of the domains' gradients", (DIVERGING, -1.0, 1.0)
    figure, _ = heat_map(values, domains, domains, title, form="{:z.2f}", colors=how, height=_CELL)
    return figure


@styled()
def layer_figure(diagnosis: Diagnosis) -> Figure:
    """Per cent of the components that agree, and of those of each domain against the rest.

    By layers, from the input, at the top, to the output; the last row is the whole network.
    """
    last = diagnosis.snapshots[-1]
    groups = [*last.groups, last.total]
    against = [f"{wrapped(domain, 12)}\nagainst\nthe rest" for domain in diagnosis.domains]
    values = 100 * _array([[group.agreeing, *group.against_rest] for group in groups])
    names = [wrapped(group.name, 26, 2) for group in groups]
    figure, axes = heat_map(values, names, ["agree", *against], "components (%)")
    axes.axhline(len(groups) - 1.5, color="white", linewidth=2.5)
    axes.axvline(0.5, color="white", linewidth=2.5)
    return figure


@styled()
def training_figure(diagnosis: Diagnosis) -> Figure:
    """Per cent of components that agree, by layers and step, of a diagnosis with several steps."""
    snapshots = diagnosis.snapshots
    columns = [
        [*(g.agreeing for g in snap.groups), snap.total.agreeing, snap.shuffled_agreeing]
        for snap in snapshots
    ]
    names = [group.name for group in snapshots[-1].groups]
    rows, steps = [*names, "whole network", "dealt out at random"], [s.step for s in snapshots]
    return _over_steps(_array(columns).T, rows, steps, "components that agree (%)", len(names))


@styled()
def logged_figure(logged: LoggedConflict) -> Figure:
    """Per cent of components that agree, by layers and up to 16 steps, as a run logged them."""
    count = len(logged.step)
    shown = np.unique(np.linspace(0, count - 1, min(count, 16)).round().astype(int))
    values = _array([*logged.groups.values(), logged.agreeing])[:, shown]
    rows, steps = [*logged.groups, "whole network"], [logged.step[place] for place in shown]
    title = "components that agree (%), logged by the run"
    return _over_steps(values, rows, steps, title, len(logged.groups))


def _over_steps(
    fractions: Values, rows: Sequence[str], steps: Sequence[int], title: str, groups: int
) -> Figure:
    """A row a group of layers, a column a step; a line parts the first `groups` from the rest."""
    labels = [wrapped(name, 26, 2) for name in rows]
    figure, axes = heat_map(100 * fractions, labels, [str(step) for step in steps], title)
    axes.axhline(groups - 0.5, color="white", linewidth=2.5)
    axes.set_xlabel("training step")
    axes.xaxis.set_label_position("top")
    return figure


def _array(values: Sequence[Numbers]) -> Values:
    return np.array(values, dtype=np.float64)  # of None NaN


@styled()
def confusion_figure(tally: Tally, classes: Sequence[str], title: str) -> Figure:
    """Per cent of the images of each class (a row) by the class predicted; white where none."""
    names, counts = tally.shown(classes)
    matrix = counts.astype(np.float64)
    images = matrix.sum(axis=1, keepdims=True)
    values = np.where(matrix > 0, 100 * matrix / np.maximum(images, 1), np.nan)
    rows = [f"{wrapped(name, 18, 1)} ({n:.0f})" for name, n in zip(names, images.flat, strict=True)]
    length, lines = (18, 1) if matrix.size > _MOST_NUMBERS else (12, 2)
    columns = [wrapped(name, length, lines) for name in names]
    figure, axes = heat_map(values, rows, columns, wrapped(title, 60, 2))
    axes.tick_params(axis="x", labelrotation=90 if len(classes) > 8 else 0)
    axes.set_xlabel("predicted (% of the class's images)")
    return figure


@styled()
def reliability_figure(tally: Tally, title: str) -> Figure:
    """Accuracy against confidence in 15 bins, with their intervals, and how many images."""
    figure, grid = new_figure(3.2, 3.6, rows=2)
    axes, below = grid[:, 0]
    images, _, confidence = tally.bins().T
    there = np.flatnonzero(images)
    found = accuracy_by_bin(tally).values()
    heights = np.array([each.value for each in found])
    reach = np.abs(np.array([[each.low, each.high] for each in found]).T - heights)
    mean = confidence[there] / images[there]
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
    axes.errorbar(mean, heights, reach, fmt="o", color=_BLUE, markersize=3, linewidth=0.8)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), ylabel="accuracy")
    starts = np.arange(BINS + 1) / BINS
    below.bar(starts, images, width=1 / BINS, align="edge", color=_BLUE, edgecolor="white")
    below.set(xlim=(0, 1.02), xlabel="confidence in the predicted class", ylabel="images")
    set_heading(figure, title, "Below the dashed line the model is surer than it is right.")
    return figure


def heat_map(
    values: Values,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    *,
    form: str = "{:.0f}",
    colors: tuple[str, float, float] | None = None,
    height: float = 0.3,
) -> tuple[Figure, Axes]:
    """Coloured cells with their values in them; a missing one is white with a dash.

    So many cells that no eye could read them, or no page could hold, are small, and without values;
    of very many rows or columns, one in several is named.

    colors: the map and its ends; by default, per cent from 0 to the next ten above the highest.
    height: of a cell, in inches.
    """
    counts, sizes, every = (len(rows), len(columns)), [height, _CELL], [1, 1]
    longest = max(count * size for count, size in zip(counts, sizes, strict=True))
    crowded = math.prod(counts) > _MOST_NUMBERS or longest > 2 * _CROWDED
    for axis, count in enumerate(counts):
        if crowded and count * sizes[axis] > _CROWDED:
            sizes[axis], every[axis] = _CROWDED / count, math.ceil(count / _MOST_NAMES)
    figure, grid = new_figure(2.1 + len(columns) * sizes[1], 1.1 + len(rows) * sizes[0])
    axes: Axes = grid[0, 0]
    highest = 10 * np.ceil(np.nanmax(np.append(values, 0)) / 10)
    name, low, high = colors or (SEQUENTIAL, 0.0, max(10.0, highest))
    # Not seaborn.heatmap, which writes white figures on middle tones, where black stands out more.
    image = axes.imshow(values, cmap=name, vmin=low, vmax=high, aspect="auto")
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xticks(range(0, len(columns), every[1]), columns[:: every[1]])
    axes.set_yticks(range(0, len(rows), every[0]), rows[:: every[0]])
    axes.tick_params(length=0, labelsize=7)
    axes.xaxis.tick_top()
    if sizes[1] < _CELL:
        axes.tick_params(axis="x", labelrotation=90)
    for (row, column), value in () if crowded else np.ndenumerate(values):
        if np.isnan(value):
            axes.text(column, row, "–", ha="center", va="center", color=GREY)
            continue
        luminance = image.to_rgba(np.array([value]))[0, :3] ** 2.2 @ (0.2126, 0.7152, 0.0722)
        color = "black" if luminance > 0.18 else "white"  # what stands out more
        text = form.format(value).replace("-", "−")
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=7)
    named = f"\none name in {max(every)} is shown" if max(every) > 1 else ""
    axes.set_title(f"{title}{named}", loc="left", fontsize=8)
    return figure, axes
