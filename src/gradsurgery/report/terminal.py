"""Tables and runs on a terminal, as wide as it is: no figure and no word is broken."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.record import ModelResult, Record
from gradsurgery.errors import printable
from gradsurgery.report.classification_text import accuracy_text, never_predicted, recall_table
from gradsurgery.report.data_text import recorded_sentences
from gradsurgery.report.section import Entry, Table, Text, listed, plain_table, value_text
from gradsurgery.report.tables import rows_with_below

if TYPE_CHECKING:
    import rich.table
    import rich.text
    from rich.console import Console, ConsoleOptions, RenderResult

_BLOCKS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 24
_GAP = 2
"""Columns of the terminal between two of a table."""


@dataclass(frozen=True)
class OnTerminal:
    """What rich prints for paragraphs and tables.

    A name that begins several rows is in the first of them. A table that is wider than the terminal
    even with its texts broken between words is laid out with a line a figure, under the name of its
    row.
    """

    blocks: Sequence[Text | Table]

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        """Lay the blocks out for the width that there is."""
        for block in self.blocks:
            if isinstance(block, Text):
                yield literal(block.text)
                continue
            if block.caption:
                yield literal(block.caption)
            least, natural = _widths(block)
            fits = sum(least) + _GAP * (len(least) - 1) <= options.max_width
            if fits:
                yield _grid(block, _shrunk(natural, least, options.max_width))
            else:
                yield from _stacked(block, options.max_width)
            yield ""
            yield from map(literal, block.notes)
            if block.notes:
                yield ""


def literal(text: str, style: str = "") -> "rich.text.Text":
    """Text as it is: a name may hold what rich, or the terminal, would obey."""
    import rich.text

    return rich.text.Text(printable(text), style=style)


def by_data_and_target(table: Table) -> list[Table]:
    """A table for each pair of entries in the first two columns, which are its caption."""
    groups = itertools.groupby(table.rows, key=lambda row: (row[0].text, row[1].text))
    return [
        Table(f"{data}, {target} held out", table.columns[2:], [row[2:] for row in rows])
        for (data, target), rows in groups
    ]


def run_blocks(record: Record) -> list[Text | Table]:
    """One run in detail: its options, results, curves and cost."""
    options = {
        name.replace("_", " "): value_text(getattr(record.configuration, name))
        for name in RunConfiguration.model_fields
    }
    about = plain_table("", [], [[name, text] for name, text in options.items() if text != "–"])
    cost = record.cost
    parts = [
        f"{cost.seconds:.1f} s",
        f"{cost.seconds_per_step * 1000:.1f} ms a step",
        f"{cost.peak_memory_bytes / 2**20:.0f} MiB peak memory",
        str(record.environment.get("device") or ""),
    ]
    recalls = recall_table(record)
    blocks = [about, _results(record), *([recalls] if recalls else []), _curves(record)]
    texts = [f"cost: {', '.join(filter(None, parts))}"]
    if missed := never_predicted(record):
        texts.append(f"never predicted on {record.configuration.target}: {listed(missed)}")
    if record.data.skipped:
        texts.append(f"images left out, not decoded: {len(record.data.skipped)}")
    texts += recorded_sentences([record])
    return [*blocks, *map(Text, texts)]


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


def _results(record: Record) -> Table:
    target, both = record.configuration.target, (record.result.best, record.result.last)
    rows = [
        ["step", *map(_steps, both)],
        ["validation", *(f"{model.validation_accuracy:.1%}" for model in both)],
    ]
    accuracies = [model.target_accuracy for model in both]
    if None not in accuracies:
        rows.append([f"target {target}", *_with_intervals(both, target, accuracies)])
    for source in record.data.domains:
        tested = [model.test_accuracy.get(source) for model in both]
        if source != target and None not in tested:
            rows.append([f"test {source}", *_with_intervals(both, source, tested)])
    return plain_table("", ["accuracy of the model", "best", "last"], rows)


def _with_intervals(
    models: Sequence[ModelResult], domain: str, accuracies: Sequence[float | None]
) -> list[str]:
    return [
        "–" if accuracy is None else accuracy_text(accuracy, model.tests.get(domain))
        for accuracy, model in zip(accuracies, models, strict=True)
    ]


def _steps(model: ModelResult) -> str:
    """The step of a model, or the first and the last of those it is the average of."""
    return str(model.step) if model.averaged_from is None else f"{model.averaged_from}–{model.step}"


def _curves(record: Record) -> Table:
    curves: dict[str, Sequence[float | None]] = {
        "train loss": record.curves.train_loss,
        "validation accuracy": record.curves.validation_accuracy,
    }
    rows = [
        [
            name,
            *("–" if value is None else f"{value:.3f}" for value in (values[0], values[-1])),
            sparkline(values),
        ]
        for name, values in curves.items()
        if values
    ]
    return plain_table("", ["curve", "first", "last", "over the steps"], rows)


def _widths(table: Table) -> tuple[list[int], list[int]]:
    """The least and the natural width of every column: texts may be broken between words."""
    rows = [*rows_with_below(table)]
    columns = table.columns or [""] * len(rows[0])
    least, natural = [_longest_word(name) for name in columns], [*map(_cells, columns)]
    for row in rows:
        for column, entry in enumerate(row):
            text = entry.text + entry.marks
            whole, word = _cells(text), _longest_word(text)
            natural[column] = max(natural[column], whole)
            least[column] = max(least[column], word if column in table.left else whole)
    return least, natural


def _shrunk(natural: list[int], least: list[int], width: int) -> list[int]:
    """The widths, the widest column that can be made so narrower until all fit."""
    widths = list(natural)
    while sum(widths) + _GAP * (len(widths) - 1) > width:
        widest = max((w, i) for i, w in enumerate(widths) if w > least[i])[1]
        widths[widest] -= 1
    return widths


def _grid(table: Table, widths: Sequence[int]) -> "rich.table.Table":
    """A line a row, and more lines where a text is broken."""
    from rich import box
    from rich.table import Table as Grid

    grid = Grid(
        box=box.SIMPLE_HEAD,
        show_header=bool(table.columns),
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    for position, width in enumerate(widths):
        name = literal(table.columns[position]) if table.columns else ""
        justify = "left" if position in table.left else "right"
        grid.add_column(name, justify=justify, width=width)  # type: ignore[arg-type]
    for row in _rows(table):
        grid.add_row(*map(_shown, row))
    return grid


def _stacked(table: Table, width: int) -> "RenderResult":
    """A line a figure, under the name of its row; a long text on a line below its name."""
    from rich.padding import Padding
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
    above: list[Entry] = []
    for row in rows_with_below(table):
        known = 0
        while known < len(above) - 1 and known in table.left and row[known] == above[known]:
            known += 1
        yield [Entry("")] * known + row[known:]
        above = row


def _shown(entry: Entry) -> "rich.text.Text":
    text = literal(entry.text, "bold" if entry.strong else "")
    return text.append(literal(entry.marks))


def _longest_word(text: str) -> int:
    return max(map(_cells, text.split()), default=0)


def _cells(text: str) -> int:
    """Columns of the terminal that the text takes."""
    from rich.cells import cell_len

    return cell_len(printable(text))
