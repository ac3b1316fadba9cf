"""Methods compared: box plots of the target accuracy (figures 3 and 4), and average ranks."""

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
    Styles,
    new_figure,
    set_heading,
    styled,
    tidy,
    wrapped,
)
from gradsurgery.report.section import listed
from gradsurgery.results.ranking import Ranking
from gradsurgery.results.statistics import SIGNIFICANCE
from gradsurgery.results.tables import Cell, ComparisonTable

_LEAST_FOR_A_BOX = 3  # runs: quartiles of fewer say nothing that the points do not say
_LEAST_SPAN = 4.0  # percentage points that an axis shows at least
_MOST_COLUMNS = 4
_ROW = 0.22  # inches between two names of a diagram of ranks
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
    bases = {target: table.cells.get((table.baseline, target)) for target in table.targets}
    complete = {target: cell for target, cell in bases.items() if cell and cell.complete}
    for target, cell in complete.items():
        middle, line = median(cell.values), (0, (4, 3))
        axes[target].axvline(middle, color=GREY, linewidth=0.7, linestyle=line, zorder=1)
    partial = any(not cell.complete for cell in table.cells.values())
    tests = [note for note in table.notes if table.tests and not note.startswith("n=")]
    notes = [
        *(f"{note[0].upper()}{note[1:]}." for note in tests),
        *(["Hollow boxes: seeds are missing; such cells are not tested."] if partial else []),
        *([f"Dashed line: median of {table.baseline}."] if complete else []),
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


@styled()
def draw_ranks(ranking: Ranking, cells: str, styles: Styles) -> Drawing:
    """Average ranks on an axis from 1 (best, at the left) to the number of methods.

    The bar above the axis is the critical difference; methods that are not significantly different
    are joined by a thick line below it. `cells` says in words what was ranked.

    Source: Demšar 2006, "Statistical Comparisons of Classifiers over Multiple Data Sets", fig. 1.
    """
    ranks = dict(zip(ranking.methods, ranking.ranks, strict=True))
    ordered = sorted(ranks, key=lambda method: (ranks[method], method))
    below = 0.3 + 0.13 * len(ranking.cliques)  # inches from the axis to the first name
    names = _ROW * -(-len(ordered) // 2)
    figure, grid = new_figure(6.4, 0.75 + below + names + 0.4)
    axes: Axes = grid[0, 0]
    axes.set_axis_off()
    count = max(len(ordered), 2)
    axes.set_xlim(1 - 0.75 * (count - 1), count + 0.75 * (count - 1))
    axes.set_ylim(-(below + names), 0.75)  # inches, the axis at 0
    _draw_axis(axes, count)
    _draw_critical_difference(axes, ranking.critical_difference, count)
    for level, clique in enumerate(ranking.cliques):
        ends = [ranks[method] for method in clique]
        y, beyond = -0.13 * (level + 1), 0.012 * count
        line = axes.plot([min(ends) - beyond, max(ends) + beyond], [y, y], color="black")[0]
        line.set(linewidth=3, solid_capstyle="butt", gid=f"clique-{level}")
    _draw_names(axes, {method: ranks[method] for method in ordered}, below, styles)
    test = f"Nemenyi's test at {SIGNIFICANCE}"
    note = f"Methods joined by a bar are not told apart by {test}."
    set_heading(figure, f"Average ranks over {cells}", note)
    caption = (
        f"Average ranks of the methods' means over {cells}, 1 the best. Two methods differ by "
        f"{test} where their ranks are farther apart than the critical difference, "
        f"{ranking.critical_difference:.2f} (Demšar 2006)."
    )
    if ranking.left_out:
        caption += f" Left out, as a method is not complete there: {listed(ranking.left_out)}."
    order = listed([f"{method} {rank:.2f}" for method, rank in ranks.items()])
    return Drawing(figure, caption, f"Average ranks, best first: {order}.")


def _draw_axis(axes: Axes, count: int) -> None:
    axes.plot([1, count], [0, 0], color="black", linewidth=0.9)
    for rank in range(1, count + 1):
        axes.plot([rank, rank], [0, 0.08], color="black", linewidth=0.9)
        axes.text(rank, 0.12, str(rank), ha="center", va="bottom", fontsize=7)
    axes.text(1 - 0.03 * count, 0.04, "better", ha="right", va="center", fontsize=6.5, color=GREY)
    axes.text(count + 0.03 * count, 0.04, "worse", ha="left", va="center", fontsize=6.5, color=GREY)


def _draw_critical_difference(axes: Axes, length: float, count: int) -> None:
    """The bar; one longer than the axis ends with it, and its label says so."""
    ends, height = (1.0, 1.0 + min(length, count - 1.0)), 0.45
    bar = axes.plot(ends, [height, height], color="black", linewidth=0.9)[0]
    bar.set_gid("critical-difference")
    for end in ends:
        axes.plot([end, end], [height - 0.05, height + 0.05], color="black", linewidth=0.9)
    longer = " (longer than the axis)" if length > count - 1 else ""
    text = f"critical difference {length:.2f}{longer}"
    axes.text(sum(ends) / 2, height + 0.06, text, ha="center", va="bottom", fontsize=7)


def _draw_names(axes: Axes, ranks: Mapping[str, float], below: float, styles: Styles) -> None:
    """A line from each rank on the axis to its method's name at one side, the best first."""
    half, count = -(-len(ranks) // 2), max(len(ranks), 2)
    for place, (method, rank) in enumerate(ranks.items()):
        left = place < half  # the better half from the top down, the rest from the bottom up
        height = -(below + _ROW * (place if left else len(ranks) - 1 - place))
        end, gap = (1 - 0.03 * count, -0.01) if left else (count + 0.03 * count, 0.01)
        color, name = styles[method].color, wrapped(method, 30, 2)
        axes.plot([rank, rank, end], [0, height, height], color=color, linewidth=1.0, zorder=1)
        axes.plot([rank], [0], marker=styles[method].marker, color=color, markersize=4, zorder=3)
        axes.text(
            end + gap * count,
            height,
            f"{name}  {rank:.2f}" if left else f"{rank:.2f}  {name}",
            ha="right" if left else "left",
            va="center",
            fontsize=7.5 if "\n" not in name else 6,
        )
