"""What the sections of a page are made of. All text is plain: the page escapes it."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

PIXELS_PER_INCH = 125
"""Of a figure on the page: its seven points become a little less than the text's size."""
MOST_SVG_BYTES = 600_000
"""Of a figure; a larger SVG gives way to the PNG where that is smaller."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Listing:
    """A list of sentences."""

    items: Sequence[str]
    kind: str = "listing"


@dataclass(frozen=True)
class Entry:
    """A cell of a table.

    `sort` orders the rows when the column is sorted, a number before a text before None; not
    given, the text does. `strong` is bold, `below` small on a line of its own, `code` a command.
    `link` is a relative address.
    """

    text: str
    sort: float | int | str | None = ""
    strong: bool = False
    below: str = ""
    code: bool = False
    link: str = ""

    @property
    def key(self) -> str | None:
        """What the script sorts by; None for nothing, which comes last either way."""
        if self.sort is None:
            return None
        return self.text if self.sort == "" else str(self.sort)


@dataclass(frozen=True)
class Table:
    """A table that the reader can sort; the first column names the row, `notes` stand below it.

    Columns in `left` (by position) are aligned to the left, as the first is; all others to the
    right.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Entry]]
    notes: Sequence[str] = ()
    left: Sequence[int] = ()
    kind: str = "table"


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
    kind: str = "figure"


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away under a line; `printed` ones are unfolded on paper."""

    summary: str
    blocks: "Sequence[Block]"
    printed: bool = True
    kind: str = "details"


@dataclass(frozen=True)
class Verbatim:
    """Lines as they are: a traceback, a command."""

    text: str
    kind: str = "verbatim"


Block = Text | Listing | Table | Figure | Details | Verbatim


def embedded(svg: bytes, png: bytes) -> str:
    """The picture as a data address: the SVG, sharp at any size, unless the PNG saves much.

    >>> embedded(b"<svg/>", b"PNG")
    'data:image/svg+xml;base64,PHN2Zy8+'
    """
    if len(svg) > MOST_SVG_BYTES and len(png) < len(svg):
        return f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def plain_table(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    notes: Sequence[str] = (),
    left: Sequence[int] = (),
) -> Table:
    """A table of texts; one that begins with a number is sorted by it."""
    entries = [[Entry(text, sort=leading_number(text)) for text in row] for row in rows]
    return Table(caption, columns, entries, notes, left)


def leading_number(text: str) -> float | str | None:
    """The number that `text` is or begins with, "" for another text, None for a dash.

    >>> leading_number("71.25 ± 1.06*"), leading_number("agr-sum"), leading_number("–")
    (71.25, '', None)
    """
    if text in ("", "–"):
        return None
    first = text.split(maxsplit=1)[0].rstrip("*†").replace("−", "-").replace(",", "")
    try:
        return float(first)
    except ValueError:
        return ""
