"""`gradsurgery show`: one run in detail, or many as comparison tables."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from gradsurgery.cli import options as opt
from gradsurgery.documents.record import Record
from gradsurgery.documents.selection import CriterionName, Model
from gradsurgery.errors import printable
from gradsurgery.report.rendering import OnTerminal, literal, to_latex, to_markdown
from gradsurgery.report.run_text import run_blocks
from gradsurgery.report.tables import comparison_csv, comparison_table, significance_table
from gradsurgery.results import ComparisonTable, compare_runs, search_of, take_inventory
from gradsurgery.results.runs import record_files
from gradsurgery.results.selection import ALL
from gradsurgery.results.tables import BASELINE

Format = Literal["rich", "markdown", "csv", "latex"]


def show(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Records, or folders of runs.")
    ],
    *,
    output: Annotated[Format, typer.Option("--format", help="How tables are written.")] = "rich",
    model: opt.ModelOption = None,
    baseline: opt.BaselineOption = BASELINE,
    selected: opt.SelectedOption = None,
    paper: opt.PaperOption = False,
    statistics: Annotated[
        bool,
        typer.Option("--statistics", help="With differences, intervals and p-values of each test."),
    ] = False,
) -> None:
    """Show what runs came to: one in detail, several as tables of mean and standard deviation.

    A star marks what differs from the baseline (paired Wilcoxon test, p < 0.05), a dagger what
    does so after Holm's correction over the table.
    """
    files = record_files(paths)
    if len(files) == 1 and output == "rich" and selected is None:
        Console().print(OnTerminal(run_blocks(Record.load(files[0]))))
        return
    print_tables(
        paths, output, model, baseline, selected=selected, paper=paper, statistics=statistics
    )


def print_tables(
    paths: list[Path],
    output: Format = "rich",
    model: Model | None = None,
    baseline: str = BASELINE,
    *,
    selected: Literal[CriterionName, "none"] | None = None,
    paper: bool = False,
    statistics: bool = False,
) -> None:
    """Print the comparison tables of the records at `paths`, with the plans that lie there.

    Runs that a study trained for itself are left out, as a report does. Raises `DataError` where
    there is nothing to compare.
    """
    inventory = take_inventory(paths)
    search = search_of(inventory, selected or ALL)
    planned = (inventory.planned or {}).values()
    tables = compare_runs(search.runs, model or search.model, baseline, planned)
    if output == "rich":
        print_comparisons(tables, paper=paper, statistics=statistics)
        if search.provisional:
            print(search.provisional)
        return
    shown = [comparison_table(table, paper=paper) for table in tables]
    shown += [significance_table(tables)] if statistics else []
    if output == "csv":
        written = comparison_csv(tables, paper=paper)
    else:
        written = to_markdown(shown) if output == "markdown" else to_latex(shown)
    print("\n".join(map(printable, written.split("\n"))), end="")


def print_comparisons(
    tables: Sequence[ComparisonTable], *, paper: bool, statistics: bool = False
) -> None:
    """Print comparison tables, and with `statistics` the tests behind them."""
    for table in tables:
        blocks = [comparison_table(table, paper=paper)]
        blocks += [significance_table([table])] if statistics and table.tests else []
        Console().print(OnTerminal(blocks))


def print_sentences(sentences: Iterable[str]) -> None:
    """Print each on a line, which a terminal breaks between words."""
    console = Console()
    for sentence in sentences:
        console.print(literal(sentence), soft_wrap=not console.is_terminal)
