"""Figures that show images: every class and domain (figure 1), and what answers rest on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image as Pillow

from gradsurgery.documents.studies import Answer, Explanation
from gradsurgery.report.figures.style import GREY, Drawing, new_figure, set_heading, styled, wrapped
from gradsurgery.report.section import listed

Image = UInt8[np.ndarray, "_ _ 3"]

SIDE = 112
"""Pixels of an image in the figure, at most."""
_MOST_CLASSES = 10
_MOST_DOMAINS = 20
_INCHES = 0.82
_GAP = 6


@dataclass(frozen=True)
class Examples:
    """Images of a data set, uint8 RGB, one for each (class, domain) that has one."""

    data: str
    classes: Sequence[str]
    domains: Sequence[str]
    images: Mapping[tuple[str, str], Image]


def exemplary(classes: Sequence[str], domains: Sequence[str]) -> tuple[list[str], list[str]]:
    """The classes and domains that figure 1 shows images of: the first ten, and the first 20."""
    return list(classes[:_MOST_CLASSES]), list(domains[:_MOST_DOMAINS])


@styled()
def draw_examples(examples: Examples) -> Drawing:
    """A row a domain, a column a class; of many, those that are `exemplary`, and it says so."""
    classes, images = examples.classes, examples.images
    shown, domains = exemplary(classes, examples.domains)
    page = mosaic([[images.get((label, domain)) for label in shown] for domain in domains])
    names = [wrapped(domain, 14, 2) for domain in domains]
    longest = max(len(line) for name in names for line in name.splitlines())
    figure, grid = new_figure(
        0.3 + 0.068 * longest + _INCHES * max(len(shown), 3), 0.8 + _INCHES * len(domains)
    )
    axes = grid[0, 0]
    axes.grid(visible=False)
    axes.imshow(page, interpolation="nearest")
    step = SIDE + _GAP
    titles = [wrapped(label, 13, 2) for label in shown]
    axes.set_xticks([step * i + SIDE / 2 for i in range(len(shown))], titles)
    axes.set_yticks([step * i + SIDE / 2 for i in range(len(domains))], names)
    axes.tick_params(length=0, labelsize=7, labeltop=True, labelbottom=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for row, domain in enumerate(domains):
        for column, label in enumerate(shown):
            if (label, domain) not in images:
                place = (step * column + SIDE / 2, step * row + SIDE / 2)
                axes.annotate("none", place, ha="center", va="center", fontsize=6, color=GREY)
    fewer = [
        f"the first {len(some)} of {len(every)} {what}"
        for some, every, what in (
            (shown, classes, "classes"),
            (domains, examples.domains, "domains"),
        )
        if len(some) < len(every)
    ]
    note = " and ".join(fewer)
    set_heading(figure, f"{examples.data}: examples", note and f"{note[0].upper()}{note[1:]}.")
    return Drawing(
        figure,
        "An image of every class (columns) and domain (rows) of "
        f"{examples.data}{note and ': '}{note}.",
        f"Images of {examples.data}, rows are the domains {listed(domains)}.",
    )


def mosaic(rows: Sequence[Sequence[Image | None]]) -> NDArray[np.uint8]:
    """The images side by side on white, each reduced or enlarged to 112 x 112 pixels."""
    step = SIDE + _GAP
    height, width = len(rows) * step - _GAP, len(rows[0]) * step - _GAP
    page = np.full((height, width, 3), 255, dtype=np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            if image is not None:
                page[i * step : i * step + SIDE, j * step : j * step + SIDE] = _resized(image)
    return page


def _resized(image: Image) -> NDArray[np.uint8]:
    small = image.shape[0] < SIDE  # a digit of 14 pixels keeps its pixels
    how = Pillow.Resampling.NEAREST if small else Pillow.Resampling.LANCZOS
    picture = Pillow.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((SIDE, SIDE), how), dtype=np.uint8)


RIGHT, WRONG = "#009e73", "#d55e00"
_ANSWER_INCHES = 1.05
_MOST_COLOURS = 20
_NAMES = {"grad-cam": "Grad-CAM", "integrated-gradients": "Integrated gradients"}


Explained = tuple[Answer, NDArray[np.uint8], NDArray[np.float32]]
"""An answer, its image [height, width, 3], and how much each pixel speaks for it, in [0, 1]."""


@styled()
def draw_attributions(shown: Sequence[Explained], model: str, by: str) -> Figure:
    """Two rows a domain, the images and what their answers rest on; a column an image."""
    rows: dict[str | None, list[Explained]] = {}
    for each in shown:
        rows.setdefault(each[0].domain, []).append(each)
    columns = max(len(row) for row in rows.values())
    figure, axes = new_figure(
        0.9 + _ANSWER_INCHES * max(columns, 3),
        0.6 + 2.25 * _ANSWER_INCHES * len(rows),
        2 * len(rows),
        columns,
    )
    for place in figure.axes:
        place.set_axis_off()
    for number, (domain, row) in enumerate(rows.items()):
        for column, each in enumerate(row):
            _draw_pair(axes[2 * number, column], axes[2 * number + 1, column], each)
        if domain is not None:
            first = axes[2 * number, 0]
            name = wrapped(domain, 14, 2)
            first.text(-0.12, 0.5, name, transform=first.transAxes, rotation=90, fontsize=8)
            first.texts[-1].set(ha="right", va="center")
    note = (
        "Above the image, below it what the answer rests on, from dark to bright. Green: right, "
        "orange: wrong, with the right class in brackets."
    )
    set_heading(figure, f"{_NAMES[by]} of {model}", note)
    return figure


def _draw_pair(above: Axes, below: Axes, shown: Explained) -> None:
    answer, pixels, attribution = shown
    above.imshow(pixels, interpolation="nearest")
    below.imshow(pixels.mean(2), cmap="gray", vmin=0, vmax=510, interpolation="nearest")
    below.imshow(attribution, cmap="inferno", alpha=0.55, vmin=0, vmax=1)
    known = answer.label is not None
    right = answer.label == answer.predicted
    said = f"{answer.predicted} {answer.probability:.0%}"
    said += "" if right or not known else f" ({answer.label})"
    color = GREY if not known else RIGHT if right else WRONG
    above.set_title(wrapped(said, 18, 2), fontsize=6, color=color, pad=2)


@styled()
def draw_places(explanation: Explanation) -> Figure:
    """The map of features twice: coloured by domain and by class; wrong answers are crosses."""
    places = explanation.places
    spots = np.array([[place.x, place.y] for place in places])
    wrong = np.array([place.label != place.predicted for place in places])
    figure, axes = new_figure(6.6, 3.5, columns=2)
    panels = (
        ("by domain", explanation.domains, [place.domain for place in places]),
        ("by class", explanation.classes, [place.label for place in places]),
    )
    for panel, (title, names, belongs) in zip(axes[0], panels, strict=True):
        colors = _colors(len(names))
        for name, color in zip(names, colors, strict=True):
            of_name = np.array([one == name for one in belongs])
            for marker, chosen in (("o", of_name & ~wrong), ("x", of_name & wrong)):
                x, y = spots[chosen].T
                panel.scatter(x, y, s=7, marker=marker, color=color, linewidths=0.7)
            panel.scatter([], [], s=14, color=color, label=wrapped(name, 16, 1))
        panel.set(xticks=[], yticks=[])
        panel.set_title(title, fontsize=8)
        panel.grid(visible=False)
        if len(names) <= _MOST_COLOURS:
            panel.legend(fontsize=5.5, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4)
    set_heading(
        figure,
        f"Features of {explanation.model}",
        "What goes into the last layer, in a plane by t-SNE; neighbours there are alike, distances "
        "between groups mean little. A cross is a wrong answer.",
    )
    return figure


def _colors(count: int) -> list[tuple[float, ...]]:
    if count <= 10:
        return list(mpl.colormaps["tab10"].colors[:count])  # type: ignore[attr-defined]
    return [tuple(color) for color in mpl.colormaps["turbo"](np.linspace(0, 1, count))]
