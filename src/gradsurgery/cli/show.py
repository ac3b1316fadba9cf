"""`gradsurgery show`: one run in detail, or many as comparison tables."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from gradsurgery.reports import Cell, ComparisonTable

_OPTIONS = (
    "data",
    "target",
    "method",
    "settings",
    "average",
    "backbone",
    "weights",
    "batch_norm",
    "seed",
    "split_seed",
    "iterations",
    "batch_size",
    "batches",
    "optimizer",
    "learning_rate",
    "weight_decay",
    "image_size",
    "precision",
)
_BLOCKS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 60


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
        Model,
        typer.Option("--model", help="Best validation accuracy, or the end of training."),
    ] = Model.BEST,
) -> None:
    """Show what runs came to: one in detail, several as tables of mean and standard deviation."""
    from gradsurgery.reports import find_records, read_record

    files = find_records(paths)
    if len(files) == 1 and output is Format.RICH:
        print_record(read_record(files[0]))
    else:
        print_tables(files, output, model)


def print_tables(
    paths: list[Path], output: Format = Format.RICH, model: Model = Model.BEST
) -> None:
    """Print the comparison tables of the records at `paths`."""
    from rich.console import Console

    from gradsurgery.reports import compare_runs, read_runs, to_csv, to_latex, to_markdown

    tables = compare_runs(read_runs(paths), model.value)
    if output is Format.RICH:
        console = Console()
        for table in tables:
            console.print(table.title, markup=False, highlight=False)
            console.print(_comparison(table))
        return
    render = {Format.MARKDOWN: to_markdown, Format.CSV: to_csv, Format.LATEX: to_latex}
    print(render[output](tables), end="")


def print_record(record: dict[str, Any]) -> None:
    """Print one run's options, results, curves and cost."""
    from rich.console import Console

    console = Console()
    console.print(_options(record))
    console.print(_results(record))
    console.print(_curves(record))
    cost, environment = record["cost"], record["environment"]
    per_step = cost.get("seconds_per_step")
    memory = cost.get("peak_memory_bytes")
    parts = [
        f"{cost['seconds']:.1f} s",
        "" if per_step is None else f"{per_step * 1000:.1f} ms a step",
        "" if memory is None else f"{memory / 2**20:.0f} MiB peak memory",
        str(environment.get("device", "")),
    ]
    console.print(f"cost: {', '.join(part for part in parts if part)}", markup=False)
    if skipped := record["data"].get("skipped"):
        console.print(f"images left out: {len(skipped)}", markup=False)


def _text(text: str, style: str = "") -> "Text":
    """Text as it is: a name may hold what rich would take for markup."""
    from rich.text import Text

    return Text(text, style=style)


def _grid(*headers: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_header=bool(headers))
    for position, name in enumerate(headers):
        # Folded rather than cut: a figure must not end in dots in a narrow window.
        justify = "right" if position else "left"
        table.add_column(_text(name), justify=justify, overflow="fold")  # type: ignore[arg-type]
    return table


def _comparison(table: "ComparisonTable") -> "Table":
    from gradsurgery.reports.render import header, row

    grid = _grid("method", *header(table))
    for method in table.methods:
        grid.add_row(_text(method), *(_cell(cell) for cell in row(table, method)))
    return grid


def _cell(cell: "Cell | None") -> "Text":
    from gradsurgery.reports.render import cell_text

    return _text(cell_text(cell), "bold" if cell is not None and cell.best else "")


def _options(record: dict[str, Any]) -> "Table":
    grid = _grid()
    configuration = record["configuration"]
    for name in _OPTIONS:
        value = configuration.get(name)
        if isinstance(value, dict):
            value = ", ".join(f"{key}={given}" for key, given in value.items())
        if value not in (None, ""):
            grid.add_row(name.replace("_", " "), _text(str(value)))
    return grid


def _results(record: dict[str, Any]) -> "Table":
    target = record["configuration"]["target"]
    results = [record["result"][name] for name in ("best", "last")]
    grid = _grid("accuracy of the model", "best", "last")
    grid.add_row("step", *(_steps(result) for result in results))
    grid.add_row("validation", *(f"{result['validation_accuracy']:.1%}" for result in results))
    grid.add_row(_text(f"target {target}"), *(f"{r['target_accuracy']:.1%}" for r in results))
    for source in record["data"]["domains"]:
        tested = [result["test_accuracy"].get(source) for result in results]
        if source != target and None not in tested:
            grid.add_row(_text(f"test {source}"), *(f"{accuracy:.1%}" for accuracy in tested))
    return grid


def _steps(result: dict[str, Any]) -> str:
    """The step of a model, or the first and the last of those it is the average of."""
    first = result.get("averaged_from")
    return str(result["step"]) if first is None else f"{first}–{result['step']}"


def _curves(record: dict[str, Any]) -> "Table":
    curves = record["curves"]
    grid = _grid("curve", "first", "last", "over the steps")
    grid.columns[-1].justify = "left"
    for name in ("train_loss", "validation_accuracy"):
        values = curves[name]
        if values:
            ends = ["–" if v is None else f"{v:.3f}" for v in (values[0], values[-1])]
            grid.add_row(name.replace("_", " "), *ends, sparkline(values))
    return grid


def sparkline(values: Sequence[float | int | None]) -> str:
    """The curve as a line of blocks from its lowest to its highest value, a gap where None."""
    step = max(1, -(-len(values) // _SPARK_WIDTH))
    shown = values[::-step][::-1]  # the last point is always there
    finite = [value for value in shown if value is not None]
    if not finite:
        return " " * len(shown)
    low, span = min(finite), max(finite) - min(finite)
    top = len(_BLOCKS) - 1
    return "".join(
        " " if value is None else _BLOCKS[round((value - low) / span * top) if span else 0]
        for value in shown
    )
