"""Comparison tables as Markdown, CSV and LaTeX."""

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence

from gradsurgery.reports.comparison import DECIMALS, Cell, ComparisonTable

AVERAGE = "average"
ABSENT = "–"


def to_markdown(tables: Sequence[ComparisonTable]) -> str:
    """Pipe tables, a row a method, each under its title; the best mean of a target is bold."""
    return "\n".join(_markdown(table) for table in tables)


def to_latex(tables: Sequence[ComparisonTable]) -> str:
    r"""`tabular` environments for booktabs, each under its title as a comment."""
    return "\n".join(_latex(table) for table in tables)


def to_csv(tables: Sequence[ComparisonTable]) -> str:
    """One line a cell, unrounded, with a header; averages have an empty target.

    `std_percent` is empty for one run and for averages; the settings that set the tables of a
    data set apart have columns of their own.
    """
    settings = list(dict.fromkeys(name for table in tables for name in table.settings))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    figures = ["mean_accuracy_percent", "std_percent", "runs", "complete", "best"]
    writer.writerow(["dataset", *settings, "model", "target", "method", *figures])
    for table in tables:
        values = [table.settings.get(name, "") for name in settings]
        for target, method, cell in _long(table):
            std = "" if cell.std is None else repr(cell.std)
            figures = [repr(cell.mean), std, str(cell.runs)]
            flags = [int(cell.complete), int(cell.best)]
            writer.writerow([table.data, *values, table.model, target, method, *figures, *flags])
    return text.getvalue()


def header(table: ComparisonTable) -> list[str]:
    """The columns: the targets, and the average where there are several."""
    return [*table.targets, *([AVERAGE] if len(table.targets) > 1 else [])]


def row(table: ComparisonTable, method: str) -> list[Cell | None]:
    """One method's cells under `header`, None where there is none."""
    cells = [table.cells.get((method, target)) for target in table.targets]
    return [*cells, *([table.averages.get(method)] if len(table.targets) > 1 else [])]


def cell_text(
    cell: Cell | None, *, plus_minus: str = "±", bold: Callable[[str], str] = lambda text: text
) -> str:
    """`71.25 ± 1.06`, as `bold` gives it where it is the best, with (n=…) where seeds lack."""
    if cell is None:
        return ABSENT
    spread = "" if cell.std is None else f" {plus_minus} {cell.std:.{DECIMALS}f}"
    figures = f"{cell.mean:.{DECIMALS}f}{spread}"
    count = "" if cell.complete else f" (n={cell.runs})"
    return f"{bold(figures) if cell.best else figures}{count}"


def _markdown(table: ComparisonTable) -> str:
    columns = [_markdown_text(name) for name in header(table)]
    lines = [
        f"**{_markdown_text(table.title)}**",
        "",
        f"| method | {' | '.join(columns)} |",
        f"|:--|{'--:|' * len(columns)}",
    ]
    for method in table.methods:
        cells = [cell_text(c, bold=lambda text: f"**{text}**") for c in row(table, method)]
        lines.append(f"| {_markdown_text(method)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _latex(table: ComparisonTable) -> str:
    columns = [_latex_text(name) for name in header(table)]
    lines = [
        f"% {' '.join(table.title.split())}",
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        rf"method & {' & '.join(columns)} \\",
        r"\midrule",
    ]
    for method in table.methods:
        cells = [
            cell_text(cell, plus_minus=r"$\pm$", bold=lambda text: rf"\textbf{{{text}}}")
            for cell in row(table, method)
        ]
        cells = [cell.replace(ABSENT, "--") for cell in cells]
        lines.append(rf"{_latex_text(method)} & {' & '.join(cells)} \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _long(table: ComparisonTable) -> Iterator[tuple[str, str, Cell]]:
    for target in table.targets:
        for method in table.methods:
            if (method, target) in table.cells:
                yield target, method, table.cells[method, target]
    for method, cell in table.averages.items():
        yield "", method, cell


def _markdown_text(text: str) -> str:
    # An underscore within a word is no emphasis: art_painting stays readable in the source.
    escaped = re.sub(r"[\\`*|<>\[\]]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
    return " ".join(escaped.split())


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def _latex_text(text: str) -> str:
    return " ".join("".join(_LATEX.get(character, character) for character in text).split())
