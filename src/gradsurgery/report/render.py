"""Comparison tables as Markdown, CSV and LaTeX."""

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence

from gradsurgery.results.comparison import DECIMALS, Cell, ComparisonTable
from gradsurgery.results.paired_tests import HEADER, comparison_rows
from gradsurgery.results.paper import CITATION, PaperFigure, paper_figures, paper_row

AVERAGE = "average"
ABSENT = "–"

_CELL_COLUMNS = ["mean_accuracy_percent", "std_percent", "runs", "planned", "complete", "best"]
_TEST_COLUMNS = [
    "baseline",
    "difference_points",
    "interval_low_points",
    "interval_high_points",
    "p",
    "p_holm",
    "effect_size",
    "pairs",
    "zeros",
]
_PAPER_COLUMNS = ["paper_mean_percent", "paper_std_percent", "paper_significant"]


def to_markdown(tables: Sequence[ComparisonTable], *, paper: bool = False) -> str:
    """Pipe tables, a row a method, each under its title; the best mean of a target is bold.

    A star and a dagger mark what differs from the baseline, as the lines below say. `paper` puts
    the paper's figures under those of every method that it has.
    """
    return "\n".join(_markdown(table, paper=paper) for table in tables)


def to_latex(tables: Sequence[ComparisonTable], *, paper: bool = False) -> str:
    r"""`tabular` environments for booktabs, each under its title as a comment; as `to_markdown`."""
    return "\n".join(_latex(table, paper=paper) for table in tables)


def to_csv(tables: Sequence[ComparisonTable], *, paper: bool = False) -> str:
    """One line a cell, unrounded, with a header; averages have an empty target.

    `std_percent` is empty for one run and for averages, the columns from `difference_points` on
    where nothing was tested; the settings that set the tables of a data set apart have columns of
    their own, as have the criterion that selected the hyperparameters and, with `paper`, the
    paper's figures.
    """
    settings = list(dict.fromkeys(name for table in tables for name in table.settings))
    selected = any(table.selection for table in tables)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    by = ["selection"] if selected else []
    about = ["dataset", *settings, *by, "model", "target", "method"]
    writer.writerow([*about, *_CELL_COLUMNS, *_TEST_COLUMNS, *(_PAPER_COLUMNS if paper else [])])
    for table in tables:
        values = [table.settings.get(name, "") for name in settings]
        for target, method, cell in _long(table):
            by = [table.selection] if selected else []
            about = [table.data, *values, *by, table.model, target, method]
            figures = [repr(cell.mean), "" if cell.std is None else repr(cell.std)]
            counts = [cell.runs, cell.planned, int(cell.complete), int(cell.best)]
            beside = _paper_values(table.data, target, method) if paper else []
            writer.writerow([*about, *figures, *counts, table.baseline, *_tested(cell), *beside])
    return text.getvalue()


def comparisons_to_markdown(tables: Sequence[ComparisonTable]) -> str:
    """The statistics of all tests of the tables as a pipe table."""
    lines = [f"| {' | '.join(HEADER)} |", f"|{':--|' * 3}{'--:|' * (len(HEADER) - 3)}"]
    for cells in comparison_rows(tables):
        lines.append(f"| {' | '.join(_markdown_text(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def comparisons_to_latex(tables: Sequence[ComparisonTable]) -> str:
    r"""The statistics of all tests of the tables as a `tabular` for booktabs."""
    lines = [
        rf"\begin{{tabular}}{{lll{'r' * (len(HEADER) - 3)}}}",
        r"\toprule",
        rf"{' & '.join(map(_latex_text, HEADER))} \\",
        r"\midrule",
        *(rf"{' & '.join(map(_latex_text, cells))} \\" for cells in comparison_rows(tables)),
    ]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def header(table: ComparisonTable) -> list[str]:
    """The columns: the targets, and the average where there are several."""
    return [*table.targets, *([AVERAGE] if len(table.targets) > 1 else [])]


def row(table: ComparisonTable, method: str) -> list[Cell | None]:
    """One method's cells under `header`, None where there is none."""
    cells = [table.cells.get((method, target)) for target in table.targets]
    return [*cells, *([table.averages.get(method)] if len(table.targets) > 1 else [])]


def cell_text(
    cell: Cell | None,
    *,
    plus_minus: str = "±",
    bold: Callable[[str], str] = lambda text: text,
    star: str = "*",
    dagger: str = "†",
) -> str:
    """`71.25 ± 1.06*†`, as `bold` gives it where it is the best, with (n=…) where seeds lack."""
    if cell is None:
        return ABSENT
    figures = _figures(cell.mean, cell.std, plus_minus)
    marks = (star if cell.significant else "") + (dagger if cell.significant_corrected else "")
    count = "" if cell.complete else f" (n={cell.runs} of {cell.planned})"
    return f"{bold(figures) if cell.best else figures}{marks}{count}"


def paper_text(figure: PaperFigure | None, *, plus_minus: str = "±", star: str = "*") -> str:
    """A figure of the paper, `57.35 ± 3.29*`."""
    if figure is None:
        return ABSENT
    return _figures(figure.mean, figure.std, plus_minus) + (star if figure.significant else "")


def paper_label(method: str) -> str:
    """What the row of the paper's figures for a method is called."""
    return f"{method}, paper"


def table_notes(table: ComparisonTable, *, paper: bool = False) -> list[str]:
    """What the marks of a table mean, and where the paper's figures are from, one line each."""
    beside = paper and any(paper_row(table, method) for method in table.methods)
    return [*table.notes, *([f"paper: {CITATION}, with its stars at p < 0.05"] if beside else [])]


def _figures(mean: float, std: float | None, plus_minus: str) -> str:
    spread = "" if std is None else f" {plus_minus} {std:.{DECIMALS}f}"
    return f"{mean:.{DECIMALS}f}{spread}"


def _markdown(table: ComparisonTable, *, paper: bool) -> str:
    columns = [_markdown_text(name) for name in header(table)]
    lines = [
        f"**{_markdown_text(table.title)}**",
        "",
        f"| method | {' | '.join(columns)} |",
        f"|:--|{'--:|' * len(columns)}",
    ]
    for method in table.methods:
        cells = [
            cell_text(cell, bold=lambda text: f"**{text}**", star=r"\*")
            for cell in row(table, method)
        ]
        lines.append(f"| {_markdown_text(method)} | {' | '.join(cells)} |")
        if paper and (figures := paper_row(table, method)):
            beside = [paper_text(figure, star=r"\*") for figure in figures]
            lines.append(f"| {_markdown_text(paper_label(method))} | {' | '.join(beside)} |")
    notes = [_markdown_text(note) for note in table_notes(table, paper=paper)]
    return "\n".join([*lines, *(f"\n{note}" for note in notes)]) + "\n"


def _latex(table: ComparisonTable, *, paper: bool) -> str:
    columns = [_latex_text(name) for name in header(table)]
    lines = [
        f"% {' '.join(table.title.split())}",
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        rf"method & {' & '.join(columns)} \\",
        r"\midrule",
    ]
    for method in table.methods:
        rows = {
            method: [
                cell_text(
                    cell,
                    plus_minus=r"$\pm$",
                    bold=lambda text: rf"\textbf{{{text}}}",
                    star="$^{*}$",
                    dagger=r"$^{\dagger}$",
                )
                for cell in row(table, method)
            ]
        }
        if paper and (figures := paper_row(table, method)):
            rows[paper_label(method)] = [
                paper_text(figure, plus_minus=r"$\pm$", star="$^{*}$") for figure in figures
            ]
        for label, cells in rows.items():
            texts = [cell.replace(ABSENT, "--") for cell in cells]
            lines.append(rf"{_latex_text(label)} & {' & '.join(texts)} \\")
    notes = [
        rf"\par{{\footnotesize {_latex_text(note)}}}" for note in table_notes(table, paper=paper)
    ]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *notes]) + "\n"


def _tested(cell: Cell) -> list[str]:
    test = cell.comparison
    if test is None:
        return [""] * (len(_TEST_COLUMNS) - 1)
    figures = [test.difference, test.low, test.high, test.p, test.p_holm, test.effect_size]
    return [*map(repr, figures), str(test.n), str(test.zeros)]


def _paper_values(data: str, target: str, method: str) -> list[str]:
    figure = paper_figures().get((data, target, method))
    if figure is None:
        return [""] * len(_PAPER_COLUMNS)
    return [repr(figure.mean), repr(figure.std), str(int(figure.significant))]


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
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "−": "$-$",
    "†": r"\textdagger{}",
    "…": r"\dots{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def _latex_text(text: str) -> str:
    return " ".join("".join(_LATEX.get(character, character) for character in text).split())
