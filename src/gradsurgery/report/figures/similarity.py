"""Figure 2: similarity of gradients within a domain and across domains, over training."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradsurgery.documents.similarity import SimilarityStudy
from gradsurgery.report.figures.style import GREY, new_figure, styled, tidy
from gradsurgery.report.similarity_summary import CurvePoint, summarize_similarity
from gradsurgery.results.intervals import MeanInterval

_WITHIN, _ACROSS = "#0072b2", "#d55e00"


@styled()
def similarity_figure(study: SimilarityStudy) -> Figure:
    """Mean cosine over the steps, within a domain against across domains.

    The thin lines are the runs. From three on, bands are the 95 % intervals over the runs, cut
    where they leave the range of the runs themselves.

    Raises `DataError` where the study compares no domains.

    Source: Mansilla et al. 2021, figure 2.
    """
    summary = summarize_similarity(study)
    figure, grid = new_figure(4.6, 2.7)
    axes = grid[0, 0]
    steps = [point.step for point in summary.curve]
    for name, color, marker, line, label in (
        ("within", _WITHIN, "o", "-", "within a domain"),
        ("across", _ACROSS, "s", "--", "across domains"),
    ):
        intervals = [_interval(point, name) for point in summary.curve]
        axes.plot(
            steps,
            [interval.mean for interval in intervals],
            color=color,
            marker=marker,
            linestyle=line,
            markersize=3,
            label=f"{label} ({getattr(summary, name).mean:.3f})",
        )
        if len(study.runs) > 1:
            _draw_runs(axes, study, name, color)
    axes.set_ylim(axes.get_ylim())  # the lines matter; the bands of few runs would dwarf them
    if len(study.runs) > 2:
        for name, color in (("within", _WITHIN), ("across", _ACROSS)):
            _draw_band(axes, steps, [_interval(p, name) for p in summary.curve], color)
    axes.set_xlabel("training step")
    axes.set_ylabel("mean cosine similarity")
    count = len(study.runs)
    configuration = study.configuration
    axes.set_title(
        f"{study.data}, {configuration.backbone}, {configuration.method}, "
        f"{configuration.target} held out, {count} run{'s' if count > 1 else ''}",
        fontsize=7,
        fontweight="normal",
        color=GREY,
        loc="left",
    )
    axes.legend(loc="best")
    tidy(axes)
    return figure


def _interval(point: CurvePoint, name: str) -> MeanInterval:
    return point.within if name == "within" else point.across


def _draw_runs(axes: Axes, study: SimilarityStudy, name: str, color: str) -> None:
    for run in study.runs:
        measured = [m for m in run.measurements if getattr(m, name) is not None]
        values = [getattr(m, name) for m in measured]
        axes.plot([m.step for m in measured], values, color=color, linewidth=0.5, alpha=0.6)


def _draw_band(axes: Axes, steps: list[int], intervals: list[MeanInterval], color: str) -> None:
    low = [i.mean if i.low is None else i.low for i in intervals]
    high = [i.mean if i.high is None else i.high for i in intervals]
    axes.fill_between(steps, low, high, color=color, alpha=0.12, linewidth=0)
