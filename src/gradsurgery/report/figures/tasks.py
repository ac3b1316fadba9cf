"""The figures of a study of tasks against domains."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from gradsurgery.documents.tasks_vs_domains import TasksStudy
from gradsurgery.report.figures.style import (
    GREY,
    MethodStyle,
    new_figure,
    set_heading,
    styled,
    tidy,
)
from gradsurgery.report.section import counted
from gradsurgery.report.tasks_text import gradient_frame, outcome_frame, outcomes

STYLES = {
    "tasks": MethodStyle("#d55e00", "o", "-"),
    "tasks-apart": MethodStyle("#e69f00", "^", "--"),
    "dealt": MethodStyle("#56b4e9", "D", ":"),
    "domains": MethodStyle("#0072b2", "s", "-"),
}


@styled()
def draw_tasks(study: TasksStudy) -> Figure:
    """Six panels: the gradients' conflict, what the rules do to the sum, and the outcome.

    Lines are medians over the seeds, bands their quartiles; the differences are means with their
    95 % intervals.
    """
    figure, grid = new_figure(7.6, 4.6, 2, 3)
    gradients = gradient_frame(study)
    gradients = gradients[gradients["dial"].isna()]
    panels = (
        ("expected", "expected cosine across groups", 1.0),
        ("negative", "negative pairs (%)", 100.0),
        ("pcgrad.cosine", "cosine of PCGrad's update\nwith the sum", 1.0),
        ("pcgrad.alike", "what PCGrad takes away:\ncosine in two batches", 1.0),
    )
    for place, (column, label, factor) in enumerate(panels):
        axes = grid[divmod(place, 3)]
        _draw_over_steps(axes, gradients, column, factor, study.options.groupings)
        axes.set_ylabel(label)
    _draw_differences(grid[1, 1], study, "loss", "training loss minus\nthat of the sum")
    _draw_differences(grid[1, 2], study, "unseen", "unseen domain (points)\nminus the sum")
    _add_legend(figure, study.options.groupings)
    o, seeds = study.options, len({run.seed for run in study.runs if run.dial is None})
    set_heading(
        figure,
        f"{study.name}, {o.backbone}: {o.groups} groups of {o.batch_size} images a step, "
        f"{o.target} unseen, {counted(seeds, 'seed')}",
    )
    return figure


def _draw_over_steps(
    axes: Axes, frame: pd.DataFrame, column: str, factor: float, groupings: Sequence[str]
) -> None:
    tidy(axes)
    for grouping in groupings:
        style = STYLES[grouping]
        if column not in frame:
            continue
        steps = frame[frame["grouping"] == grouping].groupby("step")[column]
        middle = steps.median().dropna() * factor
        if middle.empty:
            continue
        axes.plot(middle.index, middle, color=style.color, ls=style.line, marker=style.marker, ms=3)
        low, high = (steps.quantile(q).reindex(middle.index) * factor for q in (0.25, 0.75))
        axes.fill_between(middle.index, low, high, color=style.color, alpha=0.13, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axes.set_xlabel("step")


def _draw_differences(axes: Axes, study: TasksStudy, name: str, label: str) -> None:
    """A dot and a 95 % interval for each rule and grouping."""
    tidy(axes)
    axes.axhline(0, color=GREY, linewidth=0.8, zorder=1)
    rules = study.options.rules[1:]
    width = 0.8 / len(study.options.groupings)
    for each in outcomes(study):
        if each.name != name or (versus := each.versus) is None:
            continue
        place = study.options.groupings.index(each.grouping)  # type: ignore[arg-type]
        x = rules.index(each.rule) + (place + 0.5) * width - 0.4
        style = STYLES[each.grouping]
        axes.plot([x, x], [versus.low, versus.high], color=style.color, linewidth=1.2)
        axes.plot([x], [versus.difference], color=style.color, marker=style.marker, ms=4)
    axes.set_xticks(range(len(rules)), rules)
    axes.set_xlim(-0.6, max(len(rules), 1) - 0.4)
    axes.set_ylabel(label)


def _add_legend(figure: Figure, groupings: Sequence[str]) -> None:
    handles = [
        Line2D([], [], color=s.color, ls=s.line, marker=s.marker, ms=4, label=grouping)
        for grouping in groupings
        for s in [STYLES[grouping]]
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


@styled()
def draw_dials(study: TasksStudy) -> Figure | None:
    """A column a dial: negative pairs, PCGrad's departure from the sum, its loss by the sum's.

    None where no dial was turned.
    """
    gradients = gradient_frame(study)
    turned = [dial for dial in study.dials if (gradients["dial"] == dial).any()]
    if not turned:
        return None
    figure, grid = new_figure(1.2 + 1.7 * len(turned), 5.0, 3, len(turned), share_y="row")
    there = set(gradients.loc[gradients["dial"].notna(), "grouping"])
    shown = [grouping for grouping in study.options.groupings if grouping in there]
    rows = (
        (gradients, "negative", 100.0, "negative pairs (%)"),
        (gradients, "pcgrad.cosine", 1.0, "cosine of PCGrad's\nupdate with the sum"),
        (_gains(study), "gain", 1.0, "training loss:\nPCGrad − sum"),
    )
    for column, dial in enumerate(turned):
        usual = float(getattr(study.options, dial))
        for axes, (frame, name, factor, _) in zip(grid[:, column], rows, strict=True):
            if name not in frame:
                continue
            at = frame[(frame["dial"] == dial) | frame["dial"].isna()].copy()
            at["value"] = at["value"].fillna(usual)
            places = sorted(set(at["value"]))
            for grouping in shown:
                style = STYLES[grouping]
                means = at[at["grouping"] == grouping].groupby(["value", "seed"])[name].mean()
                over = means.groupby(level=0)
                mean, error = over.mean() * factor, over.sem() * factor * 1.96
                xs = [places.index(value) for value in mean.index]
                axes.errorbar(
                    xs, mean, yerr=error.fillna(0), color=style.color, marker=style.marker, ms=3
                )
            axes.set_xticks(range(len(places)), [f"{value:g}" for value in places])
            tidy(axes)
        grid[2, column].axhline(0, color=GREY, linewidth=0.8, zorder=1)
        grid[2, column].set_xlabel(dial.replace("_", " "))
    for axes, (*_, label) in zip(grid[:, 0], rows, strict=True):
        axes.set_ylabel(label)
    _add_legend(figure, shown)
    set_heading(figure, f"Tasks against domains: {study.name}, one dial turned at a time")
    return figure


def _gains(study: TasksStudy) -> pd.DataFrame:
    """The training loss of PCGrad minus that of the first rule, by run."""
    results = outcome_frame(study).set_index(["grouping", "dial", "value", "seed"])
    first = results.loc[results["rule"] == study.options.rules[0], "loss"]
    gains = results.loc[results["rule"] == "pcgrad", "loss"] - first
    return gains.rename("gain").dropna().reset_index()
