"""What a report is made of, whether it becomes a page, Markdown, LaTeX or lines on a terminal.

All text is plain: whatever it becomes escapes it.
"""

import base64
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isnan
from typing import Literal

from gradsurgery.results.intervals import Estimate

ABSENT = "–"
"""What stands in a table where there is no value."""
MOST_NAMES = 20
"""Of a list within a sentence."""
MOST_SENTENCES = 10
"""Of those that say the same of one domain after the other."""
MOST_SVG_BYTES = 600_000
"""Of a figure; a larger SVG gives way to the PNG where that is smaller."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Listing:
    """A list of sentences."""

    items: Sequence[str]


@dataclass(frozen=True)
class Entry:
    """A cell of a table.

    `marks` stand behind the text, `strong` or not; `below` is a figure to compare with, which a
    page puts under the text and any other form into a row of its own. `code` is a command, `link` a
    relative address.
    """

    text: str
    marks: str = ""
    below: str = ""
    strong: bool = False
    code: bool = False
    link: str = ""

    @property
    def key(self) -> str | None:
        """What a page's column is sorted by; None, for a dash, is last.

        The number that the text is or begins with, else the text.

        >>> Entry("71.25 ± 1.06*").key, Entry("agr-sum").key, Entry("–").key
        ('71.25', 'agr-sum', None)
        """
        if self.text.strip() in ("", ABSENT):
            return None
        first = self.text.split(maxsplit=1)[0].rstrip("*†").replace("−", "-").replace(",", "")
        try:
            return str(float(first))
        except ValueError:
            return self.text


@dataclass(frozen=True)
class Table:
    """A table; the first column names the row, `notes` stand below it.

    A column of numbers is aligned to the right, unless there is no header, no `columns`.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Entry]]
    notes: Sequence[str] = ()

    @cached_property
    def alignment(self) -> list[Literal["left", "right"]]:
        """Of every column: "right" of numbers, "left" of all else, and always of the first."""
        if not self.columns:
            return ["left"] * max(map(len, self.rows), default=0)
        sides: list[Literal["left", "right"]] = ["left"]
        for i in range(1, len(self.columns)):
            texts = [row[i].text.lstrip("[+-−") for row in self.rows if row[i].text not in ABSENT]
            numbers = texts and all(text[:1].isdigit() for text in texts)
            sides.append("right" if numbers else "left")
        return sides

    @property
    def rows_with_below(self) -> list[Sequence[Entry]]:
        """The rows, and what stands below their entries as rows of its own."""
        found: list[Sequence[Entry]] = []
        for row in self.rows:
            found.append(row)
            if row[0].below:
                figures = [(e.below.rstrip("*"), e.below) for e in row[1:]]
                beside = [Entry(figure, text[len(figure) :]) for figure, text in figures]
                found.append([Entry(f"{row[0].text}, {row[0].below}"), *beside])
        return found


@dataclass(frozen=True)
class Figure:
    """A picture within the page; `alt` says what it shows to those who do not see it."""

    source: str
    alt: str
    caption: str
    files: Sequence[str] = ()
    """Names of the files beside the page with the same picture."""
    width: int = 740
    """Pixels that it takes on a screen where there is room."""


def embedded(svg: bytes, png: bytes) -> str:
    """The picture as a data address: the SVG, sharp at any size, unless the PNG saves much.

    >>> embedded(b"<svg/>", b"PNG")
    'data:image/svg+xml;base64,PHN2Zy8+'
    """
    kind, picture = "svg+xml", svg
    if len(svg) > MOST_SVG_BYTES and len(png) < len(svg):
        kind, picture = "png", png
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away under a line; `printed` ones are unfolded on paper."""

    summary: str
    blocks: "Sequence[Block]"
    printed: bool = True


@dataclass(frozen=True)
class Verbatim:
    """Lines as they are: a traceback, a command."""

    text: str


Block = Text | Listing | Table | Figure | Details | Verbatim


@dataclass(frozen=True)
class Section:
    """A part under a heading; `identity` is its anchor on a page, letters and dashes."""

    identity: str
    title: str
    blocks: Sequence[Block] = ()

    @property
    def sentences(self) -> list[str]:
        """Those of its listings."""
        return [item for block in self.blocks if isinstance(block, Listing) for item in block.items]


def plain_table(
    caption: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    notes: Sequence[str] = (),
) -> Table:
    """A table of texts."""
    return Table(caption, columns, [[Entry(text) for text in row] for row in rows], notes)


def by_data_and_target(table: Table) -> list[Table]:
    """A table for each pair of entries in the first two columns, which are its caption."""
    groups = itertools.groupby(table.rows, key=lambda row: (row[0].text, row[1].text))
    return [
        Table(f"{data}, {target} held out", table.columns[2:], [row[2:] for row in rows])
        for (data, target), rows in groups
    ]


def percent(fraction: float | None) -> str:
    """A fraction in whole per cent, a smaller one with a digit; a dash for None and NaN.

    >>> percent(0.257), percent(0.5**11), percent(0.0), percent(None)
    ('26 %', '0.05 %', '0 %', '–')
    """
    if fraction is None or isnan(fraction):
        return ABSENT
    return f"{100 * fraction:{'.1g' if 0 < fraction < 0.005 else '.0f'}} %"


def rounded(value: float | None, digits: int = 2) -> str:
    """A number with so many decimals, and no sign where all are zero; a dash for None and NaN.

    >>> rounded(-0.001), rounded(0.1234, 3), rounded(None)
    ('0.00', '0.123', '–')
    """
    return ABSENT if value is None or isnan(value) else f"{value:z.{digits}f}"


def percent_text(estimate: Estimate | None, unit: str = " %") -> str:
    """A fraction in per cent with its interval; a dash for None."""
    return with_interval(estimate, ".1f", unit, factor=100.0)


def points_text(difference: Estimate, unit: str = " points") -> str:
    """A difference of fractions in percentage points, with its interval.

    >>> points_text(Estimate(0.03, -0.0001, 0.06))
    '+3.0 points [+0.0, +6.0]'
    """
    return with_interval(difference, "+z.1f", unit, factor=100.0)


def with_interval(
    estimate: Estimate | None, form: str = ".3f", unit: str = "", factor: float = 1.0
) -> str:
    """A number with its interval, unless that says nothing; a dash for None."""
    if estimate is None:
        return ABSENT
    value, low, high = (factor * x for x in (estimate.value, estimate.low, estimate.high))
    text = f"{value:{form}}{unit}"
    if low == high:  # no image, and no group, left out changes it: nothing is known of an interval
        return text
    return f"{text} [{low:{form}}, {high:{form}}]".replace("inf", "∞")  # of a single group


def listed(names: Iterable[str], most: int = MOST_NAMES) -> str:
    """Names as a sentence has them; of many, the first.

    >>> listed(["a", "b", "c"]), listed("abcd", most=2)
    ('a, b and c', 'a, b and 2 more')
    """
    *first, last = names
    if len(first) > most:  # two more at least
        first, last = first[:most], f"{len(first) + 1 - most:,} more"
    return f"{', '.join(first)} and {last}" if first else last


def first_of(sentences: Sequence[str], rest: str, most: int = MOST_SENTENCES) -> list[str]:
    """The first of many sentences of a kind, and how many `rest` there are.

    >>> first_of(["a lacks 1.", "b lacks 1.", "c lacks 2."], "domains lack classes", most=1)
    ['a lacks 1.', 'And 2 more domains lack classes.']
    """
    more = len(sentences) - most
    return [*sentences] if more < 2 else [*sentences[:most], f"And {more:,} more {rest}."]


def counted(count: int, noun: str, verb: str = "") -> str:
    """How many there are, and what they do.

    >>> counted(1, "run"), counted(3, "run"), counted(2, "cell", "lacks seeds")
    ('1 run', '3 runs', '2 cells lack seeds')
    """
    if count == 1:
        return f"1 {noun} {verb}".strip()
    first, _, rest = verb.partition(" ")
    does = {"is": "are", "has": "have"}.get(first, first.removesuffix("s"))
    return f"{count:,} {noun}s {does} {rest}".strip()


def duration(seconds: float | int) -> str:
    """A time in words.

    >>> duration(42.3), duration(125), duration(9000)
    ('42 s', '2 min 5 s', '2 h 30 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.2g} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def value_text(value: object) -> str:
    """An option's value as text.

    >>> value_text(1e-05), value_text(True), value_text({"irm.penalty": 10.0}), value_text(None)
    ('1e-05', 'yes', 'irm.penalty=10.0', '–')
    """
    if value is None or value in ({}, [], ""):
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name}={value_text(each)}" for name, each in sorted(value.items()))
    if isinstance(value, list):
        return ", ".join(map(value_text, value))
    return str(value)
