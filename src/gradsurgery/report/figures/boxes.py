"""Box plots of accuracies, lying, with every run as a point."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.ticker import MaxNLocator

from gradsurgery.report.figures.style import GREY, MethodStyle

LEAST_FOR_A_BOX = 3
"""Runs: quartiles of fewer say nothing that the points do not say."""

LEAST_SPAN = 4.0
"""Percentage points that an axis shows at least."""
MANY = 8
"""Runs from which points are smaller."""

_GOLDEN = 0.6180339887498949


def draw_box(
    axes: Axes,
    position: float,
    values: Sequence[float],
    style: MethodStyle,
    *,
    height: float = 0.6,
    hollow: bool = False,
) -> None:
    """Draw the runs' `values` at `position` of the vertical axis: box, median and points.

    The box spans the quartiles, the line in it is the median, the whiskers reach to the farthest
    run within 1.5 of its length. `hollow` boxes are not filled and dashed. Fewer than three runs
    are a line at their median and the points.
    """
    if not values:
        return
    line = {"color": style.color, "linewidth": 1.0}
    if len(values) >= LEAST_FOR_A_BOX:
        face = "white" if hollow else _pale(style.color)
        edge = {"facecolor": face, "edgecolor": style.color, "linewidth": 1.0}
        axes.boxplot(
            [list(values)],
            positions=[position],
            widths=height,
            orientation="horizontal",
            patch_artist=True,
            manage_ticks=False,
            showfliers=False,  # every run is drawn below
            boxprops=edge | {"linestyle": "--" if hollow else "-"},
            medianprops={"color": style.color, "linewidth": 2.0, "solid_capstyle": "butt"},
            whiskerprops=line,
            capprops=line,
            zorder=2,
        )
    elif len(values) > 1:
        median = float(np.median(list(values)))
        ends = (position - height / 2, position + height / 2)
        axes.plot([median, median], ends, color=style.color, linewidth=2.0, zorder=2)
    # Spread evenly and the same way each time, so that equal values do not cover one another.
    spread = [((run * _GOLDEN) % 1 - 0.5) * height * 0.55 for run in range(len(values))]
    axes.plot(
        list(values),
        [position + offset for offset in spread],
        linestyle="none",
        marker=style.marker,
        markersize=2.8 if len(values) > MANY else 4.0,
        markerfacecolor="white" if hollow else style.color,
        markeredgecolor=style.color if hollow else "white",
        markeredgewidth=0.5,
        alpha=0.9,
        zorder=3,
    )


def write_beside(axes: Axes, position: float, value: float, text: str, *, grey: bool) -> None:
    """Write `text` right of `value`, for instance a star beside the box of a method."""
    axes.annotate(
        text,
        (value, position),
        xytext=(4, 0),
        textcoords="offset points",
        ha="left",
        va="center",
        fontsize=6 if grey else 9,
        color=GREY if grey else "black",
        annotation_clip=False,
        zorder=4,
    )


def set_rows(axes: Axes, labels: Sequence[str]) -> None:
    """Name the rows of the plot from the top down, at positions 0, 1, 2, …"""
    axes.set_yticks(range(len(labels)), labels)
    for label in axes.get_yticklabels():
        label.set_fontsize(7 if "\n" not in label.get_text() else 6)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def set_range(axes: Axes, values: Sequence[float]) -> None:
    """An accuracy axis around `values` in percent, with room at the right for what stands there."""
    low, high = (min(values), max(values)) if values else (0.0, 100.0)
    short = max(LEAST_SPAN - (high - low), 0.0)
    low, high = low - short / 2, high + short / 2
    span = high - low
    axes.set_xlim(low - 0.08 * span, high + 0.22 * span)
    ticks = MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    axes.set_xticks(
        [tick for tick in ticks if low - 0.08 * span <= tick <= min(100.0, high + span)]
    )
    axes.set_xlim(low - 0.08 * span, high + 0.22 * span)  # ticks beyond it would widen it


def _pale(color: str) -> tuple[float, float, float]:
    """The colour mixed with three parts of white."""
    red, green, blue = (1 - (1 - channel) * 0.28 for channel in to_rgb(color))
    return red, green, blue
