"""How every figure looks, and how it becomes a file: the same bytes each time it is drawn."""

import io
import itertools
import logging
import re
import textwrap
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text
from numpy.typing import NDArray

from gradsurgery.atomic import atomic_file
from gradsurgery.errors import printable
from gradsurgery.results.runs import PAPER_METHODS

Line = Literal["-", "--", "-.", ":"]
Kind = Literal["png", "svg", "pdf"]

DOTS_PER_INCH = 200
_MOST_PIXELS = 60_000  # of a side; matplotlib draws fewer than 2^16
PANEL_WIDTH = 1.65
"""Inches, of a panel for a target."""
GREY = "#595959"
SEQUENTIAL = "cividis"
"""Colour map of a quantity from low to high."""
DIVERGING = "PuOr"
"""Colour map of a quantity on both sides of zero."""

# The baseline is black. Okabe & Ito 2008 without their yellow, which is lost on white paper, then
# Tol's muted scheme; the order keeps the methods of the paper apart under any colour blindness.
_COLORS = (
    *("#1a1a1a", "#0072b2", "#56b4e9", "#d55e00", "#e69f00"),
    *("#009e73", "#cc79a7", "#882255", "#332288", "#999933"),
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
_LINES: tuple[Line, ...] = ("-", "--", "-.", ":")


class Drawing(NamedTuple):
    """A figure of a report; `alt` says what it shows in words."""

    figure: Figure
    caption: str
    alt: str


class MethodStyle(NamedTuple):
    """How a method is drawn in every figure: `color` "#rrggbb", `marker`, `line` of matplotlib."""

    color: str
    marker: str
    line: Line


Styles = Mapping[str, MethodStyle]
"""How each method of a report is drawn, by its name."""


@contextmanager
def styled() -> Iterator[None]:
    """Everything drawn within looks like the other figures; also a decorator, `@styled()`."""
    with mpl.rc_context():
        mpl.rcdefaults()  # a user's matplotlibrc must not change the bytes
        mpl.rcParams.update(_settings())
        yield


@cache
def _settings() -> mpl.RcParams:
    file = Path(__file__).with_name("report.mplstyle")
    return mpl.rc_params_from_file(file, use_default_template=False)


def new_figure(
    width: float | int,
    height: float | int,
    rows: int = 1,
    columns: int = 1,
    *,
    share_y: bool | Literal["row"] = False,
) -> tuple[Figure, NDArray[np.object_]]:
    """A figure of `width` x `height` inches and its axes, an array [rows, columns].

    It belongs to no window and to no global state; call it, and draw, within `styled()`.

    >>> with styled():
    ...     figure, axes = new_figure(4, 2, columns=3)
    >>> axes.shape
    (1, 3)
    """
    figure = Figure(figsize=(width, height), layout="constrained", dpi=DOTS_PER_INCH)
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=share_y)


def save(figure: Figure, stem: Path) -> tuple[Path, Path, Path]:
    """Write `stem`.png, .svg and .pdf and return their paths; raises `OutputError`.

    The same figure gives the same bytes (with the same matplotlib): no date, no random ids.
    """
    kinds: tuple[Kind, Kind, Kind] = ("png", "svg", "pdf")
    png, svg, pdf = (stem.with_name(f"{stem.name}.{kind}") for kind in kinds)
    for kind, path in zip(kinds, (png, svg, pdf), strict=True):
        with atomic_file(path) as temporary:
            temporary.write_bytes(encoded(figure, kind))
        figure.set_layout_engine("none")  # stays as the first has it: a second layout moves things
    return png, svg, pdf


def encoded(figure: Figure, kind: Kind) -> bytes:
    """The content of the figure's PNG, SVG or PDF file."""
    stream = io.BytesIO()
    dots = min(DOTS_PER_INCH, _MOST_PIXELS / max(figure.get_size_inches()))
    metadata = {{"png": "Software", "svg": "Date", "pdf": "CreationDate"}[kind]: None}
    with styled(), _quiet_fonts():
        _find_characters(figure)
        figure.savefig(stream, format=kind, dpi=dots, metadata=metadata)
    return stream.getvalue()


@contextmanager
def _quiet_fonts() -> Iterator[None]:
    """Inside, nothing is said of characters that are shown as a box or not in bold."""
    log = logging.getLogger("matplotlib.font_manager")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            yield
    finally:
        log.setLevel(before)


def _find_characters(figure: Figure) -> None:
    """Have text that the figures' font lacks characters of written with others of this computer."""
    for axes in figure.axes:
        _ = *axes.get_xticklabels(), *axes.get_yticklabels()  # which are written when asked for
    own = font_manager.get_font(font_manager.findfont(FontProperties(family=["sans-serif"])))
    known = {*own.get_charmap(), ord("\n")}
    lacking = {text: {*map(ord, text.get_text())} - known for text in figure.findobj(Text)}
    families = ["sans-serif", *_families(frozenset().union(*lacking.values()))]
    for text in filter(lacking.get, lacking):
        text.set_fontfamily(families)


@cache
def _families(lacking: frozenset[int]) -> list[str]:
    """Fonts of this computer that have these characters, the one with most of them first."""
    if not lacking:
        return []
    found: list[tuple[int, bool, str]] = []
    for file in font_manager.findSystemFonts():
        if file.lower().endswith(".ttf"):  # others need not be readable in a PDF
            with suppress(RuntimeError):  # one that is damaged
                has = lacking.intersection(font_manager.get_font(file).get_charmap())
                special = bool(re.search("bold|italic|oblique|light", file, re.IGNORECASE))
                found += [(-len(has), special, file)] if has else []
    if not found:
        return []
    _, _, best = min(found)
    font_manager.fontManager.addfont(best)
    font = font_manager.get_font(best)
    return [font.family_name, *_families(lacking.difference(font.get_charmap()))]


def method_styles(methods: Iterable[str]) -> dict[str, MethodStyle]:
    """How each method is drawn: no two alike, in colour or in grey.

    The paper's eight always look the same. Any other method has a colour by its name, the next one
    where that is taken; colours are used again, with another marker and line, when there is none
    left.

    >>> method_styles(["agr-sum"]) == {"agr-sum": MethodStyle("#0072b2", "s", "-")}
    True
    """
    names = list(dict.fromkeys(methods))
    places = {name: PAPER_METHODS.index(name) for name in names if name in PAPER_METHODS}
    count = len(_COLORS)
    for name in sorted(set(names) - set(places)):
        own, taken = zlib.crc32(name.encode()), set(places.values())
        tries = (
            turn * count + (own + i) % count for turn in itertools.count() for i in range(count)
        )
        places[name] = next(place for place in tries if place not in taken)
    return {name: _style(places[name]) for name in names}


def _style(place: int) -> MethodStyle:
    """Of the first 40 places, no two share two of colour, marker and line; of 200, all three."""
    turn, color = divmod(place, len(_COLORS))
    return MethodStyle(
        _COLORS[color], _MARKERS[(color + turn) % len(_MARKERS)], _LINES[turn % len(_LINES)]
    )


def wrapped(name: str, width: int = 18, lines: int = 3) -> str:
    """A name as a label: broken into lines of `width` characters, cut with … after `lines`.

    >>> print(wrapped("mixup+mypackage:MyRule"))
    mixup+
    mypackage:MyRule
    """
    broken = textwrap.wrap(printable(name).replace("+", "+ "), width)  # rather there than in a word
    parts = [part.replace("+ ", "+") for part in broken] or [""]
    if len(parts) > lines:
        parts = [*parts[: lines - 1], parts[lines - 1][: width - 1] + "…"]
    return "\n".join(parts)


def tidy(axes: Axes, *, grid: Literal["x", "y"] = "y") -> None:
    """Leave the grid lines of one direction alone."""
    axes.grid(visible=False)
    axes.grid(visible=True, axis=grid)


def set_heading(figure: Figure, title: str, note: str = "") -> None:
    """Write the title above the panels and, small below them, how to read them."""
    width = max(30, int(figure.get_figwidth() * 11))
    if title:
        heading = wrapped(title, width, 3)
        figure.suptitle(heading, x=0.01, ha="left", fontsize=10, fontweight="bold")
    if note:
        lines = wrapped(note, int(width * 1.6), 5)
        figure.supxlabel(lines, x=0.01, ha="left", fontsize=6.5, color=GREY)
