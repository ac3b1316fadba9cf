"""Sections and tables as Markdown, as LaTeX, as one HTML page, and on a terminal."""

import base64
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.text import Text as RichText
from tabulate import tabulate

from gradsurgery.errors import printable
from gradsurgery.report.section import Entry, Listing, Section, Table, Text

if TYPE_CHECKING:
    from jinja2 import Environment
    from rich.table import Table as Grid

_FOLDER = Path(__file__).parent / "templates"


def render_page(
    *, title: str, origin: str, summary: Sequence[str], sections: Sequence[Section]
) -> str:
    """A page as one HTML document; sections without blocks are left out.

    Every text is escaped. The page's own policy lets a browser load nothing, not even from the
    page's folder, and run no script but the page's own.

    origin: what the page is made from. summary: the sentences on top.
    """
    style, script = ((_FOLDER / f).read_text("utf-8") for f in ("page.css", "page.js"))
    policy = (
        "default-src 'none'; img-src data:; "
        f"style-src {_fingerprint(style)}; script-src {_fingerprint(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    template = _environment().get_template("page.html")
    return template.render(
        title=title,
        origin=origin,
        summary=summary,
        sections=[section for section in sections if section.blocks],
        style=style,
        script=script,
        policy=policy,
    )


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    def visible(value: object) -> object:
        """Control characters as escapes; the lines stay."""
        return "\n".join(map(printable, value.split("\n"))) if type(value) is str else value

    return Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        finalize=visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _fingerprint(text: str) -> str:
    """How a policy names the one inline style or script that it allows."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def to_markdown(tables: Sequence[Table]) -> str:
    """Pipe tables, each under its caption; what is best is bold."""
    return "\n".join(_markdown(table) for table in tables)


def section_markdown(section: Section, heading: str = "#") -> str:
    """The section's sentences and tables, below a heading."""
    parts = [f"{heading} {markdown_text(section.title)}\n"]
    for block in section.blocks:
        if isinstance(block, Table):
            parts.append(_markdown(block))
        elif isinstance(block, Listing):
            parts.append("".join(f"- {markdown_text(item)}\n" for item in block.items))
        elif isinstance(block, Text):
            parts.append(f"{markdown_text(block.text)}\n")
    return "\n".join(parts)


def _markdown(table: Table) -> str:
    def shown(entry: Entry) -> str:
        text = markdown_text(entry.text)
        return (f"**{text}**" if entry.strong else text) + markdown_text(entry.marks, strip=False)

    text = tabulate(
        [map(shown, row) for row in table.rows_with_below],
        [markdown_text(name) for name in table.columns],
        tablefmt="pipe",
        disable_numparse=True,
        colalign=table.alignment if table.rows else None,  # tabulate 0.9 takes it for no columns
    )
    title = [f"**{markdown_text(table.caption)}**\n"] if table.caption else []
    return "\n".join([*title, text, *(f"\n{markdown_text(note)}" for note in table.notes)]) + "\n"


_MARKDOWN = re.compile(
    r"""[\\`*|<>\[\]~]            # anywhere
    | (?<![^\W_])_ | _(?![^\W_])  # no emphasis within a word: art_painting stays readable
    | &(?=\#?\w+;)               # an entity
    | (?<!\S)\#                  # the beginning of a heading, or its end
    | ^[-+=](?=[-+=\s]|$)        # a list, or a line that makes a heading of the one above
    """,
    re.VERBOSE,
)


def markdown_text(text: str, *, strip: bool = True) -> str:
    """The text as Markdown that shows it; `strip` leaves out spaces at its ends."""
    text = " ".join(printable(text).split()) if strip else printable(text)
    escaped = _MARKDOWN.sub(r"\\\g<0>", text)
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", escaped)  # a numbered list


def to_latex(tables: Sequence[Table]) -> str:
    r"""`tabular` environments for booktabs, each under its caption as a comment."""
    needs = "% needs \\usepackage{booktabs}; names in other scripts, lualatex and a font\n"
    return "\n".join([needs, *map(_latex, tables)])


def _latex(table: Table) -> str:
    def shown(entry: Entry) -> str:
        text = _latex_text(entry.text)
        raised = {"*": "$^{*}$", "†": r"$^{\dagger}$"}
        marks = "".join(raised.get(character, character) for character in entry.marks)
        return (rf"\textbf{{{text}}}" if entry.strong else text) + marks

    def line(cells: Iterable[str]) -> str:
        text = " & ".join(cells)
        return rf"{{}}{text} \\" if text.startswith(("[", "*")) else rf"{text} \\"  # \\[ is \\[2pt]

    columns = "".join(side[0] for side in table.alignment)
    lines = [
        *([f"% {' '.join(printable(table.caption).split())}"] if table.caption else []),
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        line(map(_latex_text, table.columns)),
        r"\midrule",
        *(line(map(shown, row)) for row in table.rows_with_below),
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par{{\footnotesize {_latex_text(note)}}}" for note in table.notes),
    ]
    return "\n".join(lines) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "`": r"\textasciigrave{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "†": r"\textdagger{}",
    "…": r"\dots{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def _latex_text(text: str) -> str:
    signs = re.sub(r"(?<![^\s\[(])-(?=\d)", "−", printable(text))  # of numbers, no hyphens
    parts = re.finditer(r"([-',])(?=\1)|.", signs)  # two of these become another sign
    written = [rf"{part[1]}\/" if part[1] else _LATEX.get(part[0], part[0]) for part in parts]
    return " ".join("".join(written).split())


_GAP = 2
"""Columns of the terminal between two of a table."""
Printed = Iterator[RenderableType]
"""What rich prints, one after the other."""


@dataclass(frozen=True)
class OnTerminal:
    """What rich prints for paragraphs and tables.

    A name that begins several rows is in the first of them. Where a table is wider than the
    terminal even with its texts broken between words, as many of the names that its rows begin with
    as need be stand on lines of their own above their figures; and where these are too wide
    themselves, each is on a line.
    """

    blocks: Sequence[Text | Table]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Printed:
        """Lay the blocks out for the width that there is."""
        for block in self.blocks:
            if isinstance(block, Text):
                yield literal(block.text)
                continue
            if block.caption:
                yield literal(block.caption)
            least, natural = _widths(block)
            for above in range(_names(block) + 1):
                room = options.max_width - _GAP * above
                if sum(least[above:]) + _GAP * (len(least) - above - 1) <= room:
                    yield from _grid(block, above, _shrunk(natural[above:], least[above:], room))
                    break
            else:
                yield from _stacked(block, options.max_width)
            yield ""
            yield from map(literal, block.notes)
            if block.notes:
                yield ""


def literal(text: str, style: str = "") -> RichText:
    """Text as it is: a name may hold what rich, or the terminal, would obey."""
    return RichText(printable(text), style=style)


def _widths(table: Table) -> tuple[list[int], list[int]]:
    """The least and the natural width of every column: texts may be broken between words."""
    least, natural = [], []
    for column, side in enumerate(table.alignment):
        name = table.columns[column] if table.columns else ""
        texts = [row[column].text + row[column].marks for row in table.rows_with_below]
        width = _longest_word if side == "left" else _cells
        least.append(max([_longest_word(name), *map(width, texts)]))
        natural.append(max([_cells(name), *map(_cells, texts)]))
    return least, natural


def _shrunk(natural: list[int], least: list[int], width: int) -> list[int]:
    """The widths, the widest column that can be made so narrower until all fit."""
    widths = list(natural)
    while sum(widths) + _GAP * (len(widths) - 1) > width:
        widest = max((w, i) for i, w in enumerate(widths) if w > least[i])[1]
        widths[widest] -= 1
    return widths


def _names(table: Table) -> int:
    """How many columns of texts there are before the first of numbers; 0 where there is none."""
    return table.alignment.index("right") if "right" in table.alignment else 0


def _grid(table: Table, above: int, widths: Sequence[int]) -> Printed:
    """A line a row, and more where a text is broken; the first `above` entries are above them."""
    from rich.table import Table as Grid

    def line(cells: Iterable[RichText], style: str = "") -> "Grid":
        # The gaps are columns: what padding adds to a column's width differs with rich's version.
        grid = Grid.grid()
        row: list[RichText] = []
        for cell, justify, width in zip(cells, table.alignment[above:], widths, strict=True):
            if row:
                grid.add_column(width=_GAP)
                row.append(literal(""))
            grid.add_column(justify=justify, width=width)
            row.append(cell)
        grid.add_row(*row, style=style)
        return grid

    def indented(grid: "Grid") -> Padding:
        return Padding(grid, (0, 0, 0, _GAP * above), expand=False)

    if table.columns:
        yield indented(line(map(literal, table.columns[above:]), "table.header"))
        rule = Grid.grid()
        rule.add_column(width=sum(widths) + _GAP * (len(widths) - 1))
        rule.add_row(Rule(style=""))
        yield indented(rule)
    for row in _rows(table):
        for depth in range(above):
            if row[depth].text:
                name = literal(f"{table.columns[depth]} ").append(_shown(row[depth]))
                yield Padding(name, (0, 0, 0, _GAP * depth), expand=False)
        yield indented(line(map(_shown, row[above:])))


def _stacked(table: Table, width: int) -> Printed:
    """A line a figure, under the name of its row; a long text on a line below its name."""
    from rich.table import Table as Grid

    names = [*table.columns[1:]] or [""] * (max(map(len, table.rows)) - 1)
    longest = max(map(_cells, names))
    room = width - 2 * _GAP - longest
    for row in _rows(table):
        if row[0].text:
            yield literal(f"{table.columns[0]} " if table.columns else "").append(_shown(row[0]))
        for name, entry in zip(names, row[1:], strict=True):
            if not entry.text:
                continue
            if room >= _longest_word(entry.text + entry.marks):
                grid = Grid.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
                grid.add_column(width=longest)
                grid.add_row(literal(name), _shown(entry))
                yield Padding(grid, (0, 0, 0, _GAP))
            else:
                yield Padding(literal(name), (0, 0, 0, _GAP))
                yield Padding(_shown(entry), (0, 0, 0, 2 * _GAP))


def _rows(table: Table) -> Iterator[list[Entry]]:
    """The rows, without the texts at their beginning that the row above has too."""
    above: Sequence[Entry] = ()
    for row in table.rows_with_below:
        pairs = zip(row, above[:-1], table.alignment, strict=False)
        same = itertools.takewhile(lambda pair: pair[0] == pair[1] and pair[2] == "left", pairs)
        known = len(list(same))
        yield [*[Entry("")] * known, *row[known:]]
        above = row


def _shown(entry: Entry) -> RichText:
    text = literal(entry.text, "bold" if entry.strong else "")
    return text.append(literal(entry.marks))


def _longest_word(text: str) -> int:
    return max(map(_cells, text.split()), default=0)


def _cells(text: str) -> int:
    """Columns of the terminal that the text takes."""
    return cell_len(printable(text))
