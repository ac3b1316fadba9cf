"""Figure 3: the target accuracy of every run as box plots, by target and method."""

from collections.abc import Mapping, Sequence
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradsurgery.report.figures.boxes import draw_box, set_range, set_rows, write_beside
from gradsurgery.report.figures.panels import set_heading, target_panels
from gradsurgery.report.figures.style import (
    GREY,
    MethodStyle,
    method_styles,
    styled,
    tidy,
    wrapped,
)

Styles = Mapping[str, MethodStyle]

Accuracies = Mapping[tuple[str, str], Sequence[float]]
"""Percent by (method, target), one value a run; a pair without runs is absent."""


@styled()
def draw_accuracies(
    accuracies: Accuracies,
    *,
    methods: Sequence[str],
    targets: Sequence[str],
    seeds: int,
    reference: str | None = None,
    marks: Mapping[tuple[str, str], str] | None = None,
    styles: Styles | None = None,
    title: str = "",
    note: str = "",
) -> Figure:
    """A panel a target, in it a box a method.

    seeds: runs that a complete cell has; the box of any other is hollow, with their number.
    reference: the method whose median is a dashed line, if it is complete.
    marks: written beside the box of (method, target), say a star.
    styles: how the methods are drawn; by default as `method_styles(methods)` says.
    note: how to read the marks, small below the figure.
    """
    labels = [row_label(method) for method in methods]
    styles = styles or method_styles(methods)
    panels = target_panels(
        targets,
        panel_height=0.24 * max(len(methods), 3),
        label_width=label_width(labels),
        axis="target accuracy (%)",
    )
    for target, axes, first in zip(targets, panels.axes, panels.first, strict=True):
        tidy(axes, grid="x")
        rows = {method: list(accuracies.get((method, target), ())) for method in methods}
        texts = {method: (marks or {}).get((method, target), "") for method in methods}
        _draw_panel(axes, rows, seeds, styles, texts)
        reached = rows.get(reference or "", [])
        if reached and len(reached) >= seeds:
            _draw_reference(axes, median(reached))
        set_rows(axes, labels if first else [""] * len(labels))
    set_heading(panels.figure, title, note)
    return panels.figure


def _draw_panel(
    axes: Axes,
    rows: Mapping[str, Sequence[float]],
    seeds: int,
    styles: Mapping[str, MethodStyle],
    marks: Mapping[str, str],
) -> None:
    set_range(axes, [value for values in rows.values() for value in values])
    for position, (method, values) in enumerate(rows.items()):
        if not values:
            axes.annotate(
                "no run",
                (0.02, position),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=6,
                color=GREY,
            )
            continue
        partial = len(values) < seeds
        draw_box(axes, float(position), values, styles[method], hollow=partial)
        if partial:
            write_beside(axes, float(position), max(values), f"{len(values)} of {seeds}", grey=True)
        elif marks[method]:
            write_beside(axes, float(position), max(values), marks[method], grey=False)


def _draw_reference(axes: Axes, value: float) -> None:
    axes.axvline(value, color=GREY, linewidth=0.7, linestyle=(0, (4, 3)), zorder=1)


def row_label(method: str) -> str:
    """The method's name in at most two lines."""
    return wrapped(method, 26, 2)


def label_width(labels: Sequence[str]) -> float:
    """Inches that the longest line of the labels takes at seven points."""
    longest = max((len(line) for label in labels for line in label.splitlines()), default=0)
    return 0.15 + 0.062 * longest
