"""A grid of panels, one a target domain, with room for the names at the left."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradsurgery.report.figures.style import GREY, new_figure, wrapped

PANEL_WIDTH = 1.65
"""Inches."""
MOST_COLUMNS = 4


class Panels(NamedTuple):
    """A figure, and one pair of axes for each name; `first` says which begin a row."""

    figure: Figure
    axes: list[Axes]
    first: list[bool]


def target_panels(
    targets: Sequence[str], *, panel_height: float, label_width: float, axis: str = ""
) -> Panels:
    """A panel for each target, four beside each other at most, with the target as its title.

    panel_height: inches, of the axes alone.
    label_width: inches left of the first panel for the names of the rows.
    axis: what the horizontal axis of every panel is, written once, below the first of the last row.
    """
    count = len(targets)
    columns = count if count <= MOST_COLUMNS else math.ceil(count / math.ceil(count / MOST_COLUMNS))
    rows = math.ceil(count / columns)
    figure, grid = new_figure(
        label_width + max(columns, 2) * PANEL_WIDTH,
        rows * (panel_height + 0.55) + 0.75,
        rows,
        columns,
    )
    axes = list(grid.ravel())
    for unused in axes[count:]:
        unused.set_axis_off()
    for name, panel in zip(targets, axes, strict=False):
        panel.set_title(wrapped(name, 17, 2), loc="left")
    if axis:
        axes[count - 1 - (count - 1) % columns].set_xlabel(axis, loc="left")
    return Panels(figure, axes[:count], [position % columns == 0 for position in range(count)])


def set_heading(figure: Figure, title: str, note: str = "") -> None:
    """Write the title above the panels and, small below them, how to read them."""
    width = max(30, int(figure.get_figwidth() * 11))
    if title:
        heading = wrapped(title, width, 3)
        figure.suptitle(heading, x=0.01, ha="left", fontsize=10, fontweight="bold")
    if note:
        lines = wrapped(note, int(width * 1.6), 5)
        figure.supxlabel(lines, x=0.01, ha="left", fontsize=6.5, color=GREY)
