"""The critical-difference diagram: average ranks, and what cannot be told apart."""

from matplotlib.axes import Axes

from gradsurgery.report.figures.boxes import Styles
from gradsurgery.report.figures.style import (
    GREY,
    Drawing,
    MethodStyle,
    new_figure,
    set_heading,
    styled,
    wrapped,
)
from gradsurgery.report.section import listed
from gradsurgery.results.ranking import Ranking

_ROW = 0.22
"""Inches between two names."""


@styled()
def draw_ranks(ranking: Ranking, cells: str, styles: Styles) -> Drawing:
    """Average ranks on an axis from 1 (best, at the left) to the number of methods.

    The bar above the axis is the critical difference; methods that are not significantly different
    are joined by a thick line below it. `cells` says in words what was ranked.

    Source: Demšar 2006, "Statistical Comparisons of Classifiers over Multiple Data Sets", fig. 1.
    """
    ranks = dict(zip(ranking.methods, ranking.ranks, strict=True))
    ordered = sorted(ranks, key=lambda method: (ranks[method], method))
    joined = ranking.cliques
    half = -(-len(ordered) // 2)
    below = 0.3 + 0.13 * len(joined)  # inches from the axis to the first name
    figure, grid = new_figure(6.4, 0.75 + below + _ROW * half + 0.4)
    axes: Axes = grid[0, 0]
    axes.set_axis_off()
    count = max(len(ordered), 2)
    axes.set_xlim(1 - 0.75 * (count - 1), count + 0.75 * (count - 1))
    axes.set_ylim(-(below + _ROW * half), 0.75)  # inches, the axis at 0
    _draw_axis(axes, count)
    _draw_critical_difference(axes, ranking.critical_difference, count)
    for level, clique in enumerate(joined):
        ends = [ranks[method] for method in clique]
        y, beyond = -0.13 * (level + 1), 0.012 * count
        line = axes.plot([min(ends) - beyond, max(ends) + beyond], [y, y], color="black")[0]
        line.set(linewidth=3, solid_capstyle="butt", gid=f"clique-{level}")
    for place, method in enumerate(ordered):
        left = place < half  # the better half from the top down, the rest from the bottom up
        row = place if left else len(ordered) - 1 - place
        _draw_name(
            axes, (method, ranks[method]), -(below + _ROW * row), styles[method], left, count
        )
    test = f"Nemenyi's test at {ranking.level:g}"
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
    shown = min(length, count - 1.0)
    start, height = 1.0, 0.45
    bar = axes.plot([start, start + shown], [height, height], color="black", linewidth=0.9)[0]
    bar.set_gid("critical-difference")
    for end in (start, start + shown):
        axes.plot([end, end], [height - 0.05, height + 0.05], color="black", linewidth=0.9)
    longer = " (longer than the axis)" if length > shown else ""
    axes.text(
        start + shown / 2,
        height + 0.06,
        f"critical difference {length:.2f}{longer}",
        ha="center",
        va="bottom",
        fontsize=7,
    )


def _draw_name(  # noqa: PLR0917
    axes: Axes,
    ranked: tuple[str, float],
    height: float,
    style: MethodStyle,
    left: bool,
    count: int,
) -> None:
    """A line from the rank on the axis to the method's name at one side."""
    method, rank = ranked
    end = 1 - 0.03 * count if left else count + 0.03 * count
    axes.plot([rank, rank, end], [0, height, height], color=style.color, linewidth=1.0, zorder=1)
    axes.plot([rank], [0], marker=style.marker, color=style.color, markersize=4, zorder=3)
    name = wrapped(method, 30, 2)
    axes.text(
        end + (-0.01 if left else 0.01) * count,
        height,
        f"{name}  {rank:.2f}" if left else f"{rank:.2f}  {name}",
        ha="right" if left else "left",
        va="center",
        fontsize=7.5 if "\n" not in name else 6,
    )
