"""Box plots of the target accuracy: figure 3 by method, figure 4 by the kind of batches too."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from gradsurgery.report.figures.style import (
    GREY,
    PANEL_WIDTH,
    Drawing,
    MethodStyle,
    new_figure,
    set_heading,
    styled,
    tidy,
    wrapped,
)
from gradsurgery.report.section import listed
from gradsurgery.results.tables import Cell, ComparisonTable

Styles = Mapping[str, MethodStyle]

_LEAST_FOR_A_BOX = 3  # runs: quartiles of fewer say nothing that the points do not say
_LEAST_SPAN = 4.0  # percentage points that an axis shows at least
_MOST_COLUMNS = 4
_GOLDEN = 0.6180339887498949
_READ = (
    "Each point is a run; the box spans the quartiles, the line in it is the median, the whiskers "
    "reach to the farthest run within 1.5 box lengths."
)


class _Box(NamedTuple):
    """The runs of a cell at a place of the vertical axis, with what stands beside them."""

    place: float
    cell: Cell | None
    style: MethodStyle
    height: float = 0.6
    hollow: bool = False
    mark: str = ""
    absent: str = "no run"


@styled()
def draw_accuracies(table: ComparisonTable, styles: Styles) -> Drawing:
    """Figure 3: a panel a target, in it a box a method with its star and dagger.

    A box that lacks seeds is hollow, with the number of its runs; a dashed line is the median of
    the baseline, where that is complete.
    """
    panels = {
        target: [
            _Box(
                place,
                cell := table.cells.get((method, target)),
                styles[method],
                hollow=cell is not None and not cell.complete,
                mark=cell.stars if cell is not None else "",
            )
            for place, method in enumerate(table.methods)
        ]
        for target in table.targets
    }
    figure, axes = _draw(panels, table.methods, 0.24 * max(len(table.methods), 3))
    for target, panel in axes.items():
        cell = table.cells.get((table.baseline, target))
        if cell is not None and cell.complete:
            line = (0, (4, 3))
            panel.axvline(median(cell.values), color=GREY, linewidth=0.7, linestyle=line, zorder=1)
    partial = any(not cell.complete for cell in table.cells.values())
    tests = [note for note in table.notes if table.tests and not note.startswith("n=")]
    notes = [
        *(f"{note[0].upper()}{note[1:]}." for note in tests),
        *(["Hollow boxes: seeds are missing; such cells are not tested."] if partial else []),
        *([f"Dashed line: median of {table.baseline}."] if table.tests else []),
    ]
    title = f"{table.name}: target accuracy of the {table.models}"
    set_heading(figure, title, " ".join(notes))
    return Drawing(
        figure,
        f"Target accuracy by target and method on {table.name}. {_READ}",
        f"Box plots of the target accuracy on {table.data}, a panel for each of the targets "
        f"{listed(table.targets)} and a box for each of the methods {listed(table.methods)}; "
        "the table has the means.",
    )


@styled()
def draw_batches(multi: ComparisonTable, single: ComparisonTable, styles: Styles) -> Drawing | None:
    """Figure 4: per method a box of multi-domain batches above a hollow one of single-domain ones.

    None where the two tables have no method or no target in common.
    """
    methods = [method for method in multi.methods if method in single.methods]
    targets = [target for target in multi.targets if target in single.targets]
    if not methods or not targets:
        return None
    kinds = (("multi", multi, -0.2), ("single", single, 0.2))
    panels = {
        target: [
            _Box(
                place + offset,
                table.cells.get((method, target)),
                styles[method],
                0.32,
                hollow=kind == "single",
                absent=f"no run ({kind})",
            )
            for place, method in enumerate(methods)
            for kind, table, offset in kinds
        ]
        for target in targets
    }
    figure, _ = _draw(panels, methods, 0.42 * max(len(methods), 2), legend=1.3)
    filled = Patch(facecolor=GREY, alpha=0.4, edgecolor=GREY, label="multi-domain\nbatches")
    hollow = Patch(facecolor="white", edgecolor=GREY, ls="--", label="single-domain\nbatches")
    figure.legend(handles=[filled, hollow], loc="outside right center")
    set_heading(figure, f"{multi.data}: batches of several domains and of one")
    return Drawing(
        figure,
        f"The same rules on {multi.data} with every step's batches from different domains, and all "
        f"from one domain drawn at random (the control of the paper's Figure 4). {_READ}",
        f"Pairs of box plots of the target accuracy on {multi.data} for {listed(methods)}: "
        "multi-domain above single-domain batches.",
    )


def _draw(
    panels: Mapping[str, Sequence[_Box]],
    methods: Sequence[str],
    panel_height: float,
    legend: float = 0.0,
) -> tuple[Figure, dict[str, Axes]]:
    """A panel a target, four beside each other at most; `legend` inches are left at the right."""
    labels = [wrapped(method, 26, 2) for method in methods]
    longest = max(len(line) for label in labels for line in label.splitlines())
    count = len(panels)
    rows = math.ceil(count / _MOST_COLUMNS)
    columns = math.ceil(count / rows)
    figure, grid = new_figure(
        0.15 + 0.062 * longest + legend + max(columns, 2) * PANEL_WIDTH,
        rows * (panel_height + 0.55) + 0.75,
        rows,
        columns,
    )
    every: list[Axes] = list(grid.ravel())
    for unused in every[count:]:
        unused.set_axis_off()
    of_target = dict(zip(panels, every, strict=False))
    for position, (target, axes) in enumerate(of_target.items()):
        axes.set_title(wrapped(target, 17, 2), loc="left")
        tidy(axes, grid="x")
        _set_range(axes, [v for box in panels[target] if box.cell for v in box.cell.values])
        for box in panels[target]:
            _draw_box(axes, box)
        axes.set_yticks(
            range(len(labels)), labels if position % columns == 0 else [""] * len(labels)
        )
        for label in axes.get_yticklabels():
            label.set_fontsize(7 if "\n" not in label.get_text() else 6)
        axes.set_ylim(len(labels) - 0.4, -0.6)  # rows from the top down
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    grid[-1, 0].set_xlabel("target accuracy (%)", loc="left")
    return figure, of_target


def _draw_box(axes: Axes, box: _Box) -> None:
    """Box, median and points; fewer than three runs are a line at their median and the points."""
    color, height = box.style.color, box.height
    if box.cell is None:
        across = ("axes fraction", "data")
        place = (0.02, box.place)
        axes.annotate(box.absent, place, xycoords=across, va="center", fontsize=6, color=GREY)
        return
    values = list(box.cell.values)
    if len(values) >= _LEAST_FOR_A_BOX:
        pale = tuple(1 - (1 - channel) * 0.28 for channel in to_rgb(color))
        line = {"color": color, "linewidth": 1.0}
        drawn = axes.boxplot(
            [values],
            positions=[box.place],
            widths=height,
            orientation="horizontal",
            patch_artist=True,
            manage_ticks=False,
            showfliers=False,  # every run is drawn below
            boxprops={
                "facecolor": "white" if box.hollow else pale,
                "edgecolor": color,
                "linewidth": 1.0,
            },
            medianprops={"color": color, "linewidth": 2.0, "solid_capstyle": "butt"},
            whiskerprops=line,
            capprops=line,
            zorder=2,
        )
        drawn["boxes"][0].set_linestyle("--" if box.hollow else "-")  # no property of `boxprops`
    elif len(values) > 1:
        middle, ends = median(values), (box.place - height / 2, box.place + height / 2)
        axes.plot([middle, middle], ends, color=color, linewidth=2.0, zorder=2)
    # Spread evenly and the same way each time, so that equal values do not cover one another:
    # seaborn.stripplot draws the places at random, from NumPy's global state.
    spread = [((run * _GOLDEN) % 1 - 0.5) * height * 0.55 for run in range(len(values))]
    axes.plot(
        values,
        [box.place + offset for offset in spread],
        linestyle="none",
        marker=box.style.marker,
        markersize=2.8 if len(values) > 8 else 4.0,
        markerfacecolor="white" if box.hollow else color,
        markeredgecolor=color if box.hollow else "white",
        markeredgewidth=0.5,
        alpha=0.9,
        zorder=3,
    )
    partial = not box.cell.complete
    axes.annotate(
        f"{box.cell.runs} of {box.cell.planned}" if partial else box.mark,
        (max(values), box.place),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=6 if partial else 9,
        color=GREY if partial else "black",
        annotation_clip=False,
        zorder=4,
    )


def _set_range(axes: Axes, values: Sequence[float]) -> None:
    """An accuracy axis around `values` in percent, with room at the right for what stands there."""
    low, high = (min(values), max(values)) if values else (0.0, 100.0)
    short = max(_LEAST_SPAN - (high - low), 0.0)
    low, high = low - short / 2, high + short / 2
    span = high - low
    first, last = low - 0.08 * span, high + 0.22 * span
    ticks = MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    axes.set_xticks([tick for tick in ticks if first <= tick <= min(100.0, high + span)])
    axes.set_xlim(first, last)  # ticks beyond it would widen it
