"""Figure 4: the same rules with batches of several domains and of a single one."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from gradsurgery.report.figures.accuracy import Styles, label_width, row_label
from gradsurgery.report.figures.boxes import draw_box, set_range, set_rows, write_beside
from gradsurgery.report.figures.panels import set_heading, target_panels
from gradsurgery.report.figures.style import GREY, MethodStyle, method_styles, styled, tidy

Batches = Mapping[tuple[str, str, str], Sequence[float]]
"""Percent by (method, target, "multi" or "single"), one value a run; absent without runs."""

KINDS = ("multi", "single")
_OFFSET = {"multi": -0.2, "single": 0.2}


@styled()
def draw_batches(
    accuracies: Batches,
    *,
    methods: Sequence[str],
    targets: Sequence[str],
    seeds: int,
    styles: Styles | None = None,
    title: str = "",
    note: str = "",
) -> Figure:
    """A panel a target, two boxes a method: multi-domain batches above single-domain ones.

    The boxes of single-domain batches are hollow. seeds: runs that a complete box has; any other
    has its number of runs beside it.
    styles: how the methods are drawn; by default as `method_styles(methods)` says.
    """
    labels = [row_label(method) for method in methods]
    styles = styles or method_styles(methods)
    panels = target_panels(
        targets,
        panel_height=0.42 * max(len(methods), 2),
        label_width=label_width(labels) + 1.3,  # the legend at the right
        axis="target accuracy (%)",
    )
    for target, axes, first in zip(targets, panels.axes, panels.first, strict=True):
        tidy(axes, grid="x")
        rows = {
            (method, kind): list(accuracies.get((method, target, kind), ()))
            for method in methods
            for kind in KINDS
        }
        _draw_panel(axes, rows, seeds, styles)
        set_rows(axes, labels if first else [""] * len(labels))
    panels.figure.legend(handles=_legend(), loc="outside right center")
    set_heading(panels.figure, title, note)
    return panels.figure


def _draw_panel(
    axes: Axes,
    rows: Mapping[tuple[str, str], Sequence[float]],
    seeds: int,
    styles: Mapping[str, MethodStyle],
) -> None:
    set_range(axes, [value for values in rows.values() for value in values])
    methods = list(dict.fromkeys(method for method, _ in rows))
    for (method, kind), values in rows.items():
        position = methods.index(method) + _OFFSET[kind]
        if not values:
            axes.annotate(
                f"no run ({kind})",
                (0.02, position),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=6,
                color=GREY,
            )
            continue
        draw_box(axes, position, values, styles[method], height=0.32, hollow=kind == "single")
        if len(values) < seeds:
            write_beside(axes, position, max(values), f"{len(values)} of {seeds}", grey=True)


def _legend() -> list[Patch]:
    return [
        Patch(facecolor=GREY, alpha=0.4, edgecolor=GREY, label="multi-domain\nbatches"),
        Patch(facecolor="white", edgecolor=GREY, linestyle="--", label="single-domain\nbatches"),
    ]
