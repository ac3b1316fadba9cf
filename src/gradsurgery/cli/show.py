"""`gradsurgery show`: one run in detail, or many as comparison tables."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradsurgery.cli.select import Criterion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradsurgery.results import ComparisonTable


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
    from gradsurgery.documents.record import Record
    from gradsurgery.report.terminal import OnTerminal, run_blocks
    from gradsurgery.results.inventory import record_files

    files = record_files(paths)
    if len(files) == 1 and output is Format.RICH and selected is None:
        from rich.console import Console

        Console().print(OnTerminal(run_blocks(Record.load(files[0]))))
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
    from gradsurgery.report import tables as text
    from gradsurgery.results import compare_runs, search_of, take_inventory
    from gradsurgery.results.selection import ALL

    inventory = take_inventory(paths)
    search = search_of(inventory, ALL if selected is None else selected.value)
    of_model = search.model if model is None else "last" if model is Model.LAST else "best"
    planned = (inventory.planned or {}).values()
    tables = compare_runs(search.runs, of_model, baseline, planned)
    if output is Format.RICH:
        print_comparisons(tables, paper=paper, statistics=statistics)
        if search.provisional:
            print(search.provisional)
        return
    if output is Format.CSV:
        print(text.comparison_csv(tables, paper=paper), end="")
        return
    shown = [text.comparison_table(table, paper=paper) for table in tables]
    shown += [text.significance_table(tables)] if statistics else []
    render = text.to_markdown if output is Format.MARKDOWN else text.to_latex
    print(render(shown), end="")


def print_comparisons(
    tables: "Sequence[ComparisonTable]", *, paper: bool, statistics: bool = False
) -> None:
    """Print comparison tables, and with `statistics` the tests behind them."""
    from rich.console import Console

    from gradsurgery.report.tables import comparison_table, significance_table
    from gradsurgery.report.terminal import OnTerminal

    for table in tables:
        blocks = [comparison_table(table, paper=paper)]
        blocks += [significance_table([table])] if statistics and table.tests else []
        Console().print(OnTerminal(blocks))
