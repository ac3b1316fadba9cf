"""Figure 1: an image of every class and domain."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from gradsurgery.report.figures.style import GREY, Drawing, new_figure, set_heading, styled, wrapped
from gradsurgery.report.section import listed

Image = UInt8[np.ndarray, "_ _ 3"]

SIDE = 112
"""Pixels of an image in the figure, at most."""
_MOST_CLASSES = 10
_INCHES = 0.82
_GAP = 6


@dataclass(frozen=True)
class Examples:
    """Images of a data set, uint8 RGB, one for each (class, domain) that has one."""

    data: str
    classes: Sequence[str]
    domains: Sequence[str]
    images: Mapping[tuple[str, str], Image]


@styled()
def draw_examples(examples: Examples) -> Drawing:
    """A row a domain, a column a class; of more than ten classes, the first ten, and it says so."""
    classes, domains, images = examples.classes, examples.domains, examples.images
    shown = list(classes[:_MOST_CLASSES])
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
    fewer = len(shown) < len(classes)
    note = f"The first {len(shown)} of {len(classes)} classes." if fewer else ""
    set_heading(figure, f"{examples.data}: examples", note)
    return Drawing(
        figure,
        f"An image of every class (columns) and domain (rows) of {examples.data}.",
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
    from PIL import Image as Pillow

    small = image.shape[0] < SIDE  # a digit of 14 pixels keeps its pixels
    how = Pillow.Resampling.NEAREST if small else Pillow.Resampling.LANCZOS
    picture = Pillow.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((SIDE, SIDE), how), dtype=np.uint8)
