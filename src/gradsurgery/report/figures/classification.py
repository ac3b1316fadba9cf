"""The confusion matrix of a classifier, and how far its confidence can be trusted."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from gradsurgery.documents.tally import BINS, Tally
from gradsurgery.report.figures.heat_maps import heat_map
from gradsurgery.report.figures.style import GREY, new_figure, set_heading, styled, wrapped
from gradsurgery.results.classification import proportion

_BLUE = "#0072b2"
_MOST_NUMBERS = 40
"""Classes up to which the cells of a matrix are large enough for a number."""


@styled()
def confusion_figure(tally: Tally, classes: Sequence[str], title: str) -> Figure:
    """Per cent of the images of each class (a row) by the class predicted; white where none."""
    matrix = tally.matrix().astype(np.float64)
    images = matrix.sum(axis=1, keepdims=True)
    values = np.where(matrix > 0, 100 * matrix / np.maximum(images, 1), np.nan)
    rows = [
        f"{wrapped(name, 18, 1)} ({n:.0f})" for name, n in zip(classes, images.flat, strict=True)
    ]
    columns = [wrapped(name, 12, 2) for name in classes]
    small = len(classes) > _MOST_NUMBERS
    figure, axes = heat_map(
        values, rows, columns, wrapped(title, 60, 2), form="" if small else "{:.0f}"
    )
    axes.tick_params(axis="x", labelrotation=90 if len(classes) > 8 else 0)
    axes.set_xlabel("predicted (% of the class's images)")
    return figure


@styled()
def reliability_figure(tally: Tally, title: str) -> Figure:
    """Accuracy against confidence in 15 bins, with Wilson's intervals, and how many images."""
    figure, grid = new_figure(3.2, 3.6, rows=2)
    axes, below = grid[:, 0]
    images, correct, confidence = tally.bins().T
    there = np.flatnonzero(images)
    found = [proportion(int(correct[i]), int(images[i])) for i in there]
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
