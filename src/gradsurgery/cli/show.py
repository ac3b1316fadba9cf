"""`gradsurgery show`: one run in detail, or many as comparison tables."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradsurgery.cli.record import print_record
from gradsurgery.cli.select import Criterion, selections_among
from gradsurgery.cli.terminal_table import grid, literal
from gradsurgery.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from gradsurgery.results import Cell, ComparisonTable


class Format(StrEnum):
    """How tables are written."""

    RICH = "rich"
    MARKDOWN = "markdown"
    CSV = "csv"
    LATEX = "latex"


class Model(StrEnum):
    """Whose accuracy is compared."""

    BEST = "best"
    LAST = "last"


def show(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Records, or folders of runs.")
    ],
    *,
    output: Annotated[Format, typer.Option("--format", help="How tables are written.")] = (
        Format.RICH
    ),
    model: Annotated[
        Model | None,
        typer.Option("--model", help="best (by validation, the default), or last."),
    ] = None,
    baseline: Annotated[
        str, typer.Option("--baseline", help="The method that the others are tested against.")
    ] = "deep-all",
    selected: Annotated[
        Criterion | None,
        typer.Option("--selected", help="Of a search, show what this criterion selects."),
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="With the figures of the paper's Table 1.")
    ] = False,
    statistics: Annotated[
        bool,
        typer.Option("--statistics", help="With differences, intervals and p-values of each test."),
    ] = False,
) -> None:
    """Show what runs came to: one in detail, several as tables of mean and standard deviation.

    A star marks what differs from the baseline (paired Wilcoxon test, p < 0.05), a dagger what
    does so after Holm's correction over the table.
    """
    from gradsurgery.results import read_record, record_files

    files = record_files(paths)
    if len(files) == 1 and output is Format.RICH and selected is None:
        print_record(read_record(files[0]))
    else:
        print_tables(
            paths,
            output,
            model,
            baseline=baseline,
            selected=selected,
            paper=paper,
            statistics=statistics,
        )


def print_tables(
    paths: list[Path],
    output: Format = Format.RICH,
    model: Model | None = None,
    *,
    baseline: str = "deep-all",
    selected: Criterion | None = None,
    paper: bool = False,
    statistics: bool = False,
) -> None:
    """Print the comparison tables of the records at `paths`, with the plans that lie there.

    Runs that a study trained for itself are left out, as a report does. Raises `DataError` where
    there is nothing to compare.
    """
    from gradsurgery import report, results
    from gradsurgery.results.grid_search import nothing_chosen, provisional
    from gradsurgery.results.selection import CRITERIA

    runs, usual = results.read_runs(results.record_files(paths)), Model.BEST
    expected, early = results.find_plans(paths), ""
    if selected is not None:
        (selection,) = selections_among(runs, expected, [selected.value])
        usual = Model(CRITERIA[selected.value].model)
        runs = results.selected_runs(runs, selection)
        if runs.empty:
            raise DataError(nothing_chosen(selected.value, paths[0]))
        early = provisional(selection)
    tables = results.compare_runs(runs, (model or usual).value, baseline, expected)
    if output is Format.RICH:
        for table in tables:
            print_comparison(table, paper=paper, statistics=statistics)
        if early:
            print(early)
        return
    render = {
        Format.MARKDOWN: report.to_markdown,
        Format.CSV: report.to_csv,
        Format.LATEX: report.to_latex,
    }
    print(render[output](tables, paper=paper), end="")
    if statistics and output is Format.MARKDOWN:
        print(f"\n{report.comparisons_to_markdown(tables)}", end="")
    elif statistics and output is Format.LATEX:
        print(f"\n{report.comparisons_to_latex(tables)}", end="")


def print_comparison(table: "ComparisonTable", *, paper: bool, statistics: bool) -> None:
    """Print one comparison table with its notes, and with `statistics` the tests behind it."""
    from rich.console import Console

    from gradsurgery.report.render import table_notes
    from gradsurgery.results import comparison_rows
    from gradsurgery.results.paired_tests import HEADER

    console = Console()
    console.print(literal(table.title))
    console.print(_comparison(table, paper=paper))
    for note in table_notes(table, paper=paper):
        console.print(literal(note))
    if statistics and table.tests:
        tests = grid(*HEADER[1:], left=2)
        for cells in comparison_rows([table]):
            tests.add_row(*map(literal, cells[1:]))
        console.print(tests)


def _comparison(table: "ComparisonTable", *, paper: bool) -> "Table":
    from gradsurgery.report.render import header, paper_label, paper_text, row
    from gradsurgery.results import paper_row

    rows = grid("method", *header(table))
    for method in table.methods:
        rows.add_row(literal(method), *(_cell(cell) for cell in row(table, method)))
        if paper and (figures := paper_row(table, method)):
            rows.add_row(paper_label(method), *map(paper_text, figures), style="dim")
    return rows


def _cell(cell: "Cell | None") -> "Text":
    from gradsurgery.report.render import cell_text

    return literal(cell_text(cell), "bold" if cell is not None and cell.best else "")
