"""One run in detail, on a terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gradsurgery.cli.terminal_table import grid, literal

if TYPE_CHECKING:
    from rich.table import Table

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


def _options(record: dict[str, Any]) -> "Table":
    table = grid()
    configuration = record["configuration"]
    for name in _OPTIONS:
        value = configuration.get(name)
        if isinstance(value, dict):
            value = ", ".join(f"{key}={given}" for key, given in value.items())
        if value not in (None, ""):
            table.add_row(name.replace("_", " "), literal(str(value)))
    return table


def _results(record: dict[str, Any]) -> "Table":
    target = record["configuration"]["target"]
    results = [record["result"][name] for name in ("best", "last")]
    table = grid("accuracy of the model", "best", "last")
    table.add_row("step", *(_steps(result) for result in results))
    table.add_row("validation", *(f"{result['validation_accuracy']:.1%}" for result in results))
    table.add_row(literal(f"target {target}"), *(f"{r['target_accuracy']:.1%}" for r in results))
    for source in record["data"]["domains"]:
        tested = [result["test_accuracy"].get(source) for result in results]
        if source != target and None not in tested:
            table.add_row(literal(f"test {source}"), *(f"{accuracy:.1%}" for accuracy in tested))
    return table


def _steps(result: dict[str, Any]) -> str:
    """The step of a model, or the first and the last of those it is the average of."""
    first = result.get("averaged_from")
    return str(result["step"]) if first is None else f"{first}–{result['step']}"


def _curves(record: dict[str, Any]) -> "Table":
    curves = record["curves"]
    table = grid("curve", "first", "last", "over the steps")
    table.columns[-1].justify = "left"
    for name in ("train_loss", "validation_accuracy"):
        values = curves[name]
        if values:
            ends = ["–" if v is None else f"{v:.3f}" for v in (values[0], values[-1])]
            table.add_row(name.replace("_", " "), *ends, sparkline(values))
    return table


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
