"""The sections of a report's page, from what the records say."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gradsurgery.report.drawing import listed
from gradsurgery.report.page.blocks import (
    Block,
    Details,
    Entry,
    Figure,
    Table,
    Text,
    Verbatim,
    plain_table,
)
from gradsurgery.report.page.render import Section
from gradsurgery.report.page.summary import counted
from gradsurgery.report.render import cell_text, header, paper_text, row, table_notes
from gradsurgery.results.commands import train_command
from gradsurgery.results.groups import Group
from gradsurgery.results.inventory import Inventory
from gradsurgery.results.paired_tests import HEADER, comparison_rows
from gradsurgery.results.paper import paper_row
from gradsurgery.results.settings import shared_and_differing, values_text

_TESTS = (
    "The test is the two-sided Wilcoxon signed-rank test over runs paired by seed; zeros are pairs "
    "without a difference, which it leaves out. Holm: corrected for all tests of the same table. "
    "Effect size: rank-biserial correlation, from −1 to 1. Interval: 95 % bootstrap percentiles of "
    "the mean difference; of few seeds it is too narrow, and may leave out zero where the test "
    "finds nothing."
)
_MANY = 12
"""Rows from which a list of runs is folded away."""
_COMPARED = ("target", "method", "seed", "settings", "without")


def results_section(
    groups: Sequence[Group], figures: Sequence[Sequence[Figure]], *, paper: bool
) -> Section:
    """Table 1 and its box plots, one of each a table."""
    blocks: list[Block] = []
    for group, drawn in zip(groups, figures, strict=True):
        blocks += [results_table(group, paper=paper), *drawn]
    return Section("results", "Results", blocks)


def results_table(group: Group, *, paper: bool) -> Table:
    """A comparison table; with `paper`, the paper's figures below ours."""
    table = group.table
    rows = []
    for method in table.methods:
        beside = paper_row(table, method) if paper else []
        below = [f"paper {paper_text(figure)}" for figure in beside]
        cells = row(table, method)
        entries = [
            Entry(
                cell_text(cell),
                sort=None if cell is None else cell.mean,
                strong=cell is not None and cell.best,
                below=below[position] if below else "",
            )
            for position, cell in enumerate(cells)
        ]
        rows.append([Entry(method), *entries])
    notes = table_notes(table, paper=paper)
    if any(cell.best for cell in (*table.cells.values(), *table.averages.values())):
        notes.append("Bold: the highest mean of the column.")
    return Table(table.title, ["method", *header(table)], rows, notes)


def statistics_section(groups: Sequence[Group], ranks: Sequence[Figure]) -> Section:
    """The tests behind the stars, and the average ranks."""
    blocks: list[Block] = []
    for table in (group.table for group in groups):
        if rows := [row[1:] for row in comparison_rows([table])]:
            caption = f"{table.name}: differences from {table.baseline} on the same seeds"
            blocks.append(plain_table(caption, HEADER[1:], rows, left=[1]))
    if blocks:
        blocks.append(Text(_TESTS))
    return Section("statistics", "Statistics", [*blocks, *ranks])


def absent_section(inventory: Inventory) -> Section:
    """Runs that failed, and runs that are planned and not done."""
    blocks: list[Block] = []
    if inventory.failures:
        rows = [
            [
                str(failure.configuration.get("data", "–")),
                str(failure.configuration.get("target", "–")),
                str(failure.configuration.get("method", "–")),
                str(failure.configuration.get("seed", "–")),
                str(failure.attempts),
                failure.error,
            ]
            for failure in inventory.failures
        ]
        columns = ["data", "target", "method", "seed", "attempts", "error"]
        blocks.append(plain_table("Runs that failed", columns, rows, left=[1, 2, 5]))
        for failure in inventory.failures:
            name = failure.path.parent.as_posix()
            blocks.append(
                Details(f"Traceback of {name}", [Verbatim(failure.traceback)], printed=False)
            )
    if inventory.missing:
        rows = [[run.data, run.target, run.method, str(run.seed)] for run in inventory.missing]
        columns = ["data", "target", "method", "seed"]
        table = plain_table("Runs that are planned and not done", columns, rows, left=[1, 2])
        count = counted(len(rows), "planned run")
        blocks.append(Details(f"{count} not done", [table]) if len(rows) > _MANY else table)
    return Section("absent", "Failed and missing runs", blocks)


def configuration_section(inventory: Inventory) -> Section:
    """The data, and the options and environment that all runs share or differ in."""
    records = list(inventory.records.values())
    blocks: list[Block] = [_data_table(records)]
    parts = {
        "Options": [record["configuration"] for record in records],
        "Environment": [record["environment"] for record in records],
    }
    for title, values in parts.items():
        shared, differing = shared_and_differing(values, _COMPARED)
        if differing:
            rows = [[name.replace("_", " "), values_text(c)] for name, c in differing.items()]
            caption = f"{title} in which the runs differ"
            blocks.append(plain_table(caption, ["name", "values"], rows, left=[1]))
        rows = [[name.replace("_", " "), text] for name, text in shared.items()]
        table = plain_table(f"{title} that all runs share", ["name", "value"], rows, left=[1])
        blocks.append(Details(table.caption, [table]))
    seconds = sum(float(record["cost"]["seconds"]) for record in records)
    blocks.append(Text(f"The runs took {duration(seconds)} of computing, one after the other."))
    return Section("configuration", "Data, configuration and environment", blocks)


def runs_section(inventory: Inventory, folder: Path) -> Section:
    """Every run with its record and the command that repeats it; links are from `folder`."""
    rows = []
    for run in inventory.runs.itertuples():
        path = Path(str(run.record))
        content = inventory.records[path]
        best = content["result"]["best"]
        rows.append(
            [
                Entry(str(run.data)),
                Entry(str(run.target)),
                Entry(str(run.method)),
                Entry(str(run.seed), sort=int(content["configuration"]["seed"])),
                _percent(best["target_accuracy"]),
                _percent(content["result"]["last"]["target_accuracy"]),
                _percent(best["validation_accuracy"]),
                Entry(str(best["step"]), sort=int(best["step"])),
                Entry(f"{content['cost']['seconds']:.1f}", sort=content["cost"]["seconds"]),
                Entry("record", link=relative_link(path, folder)),
                Entry(train_command(content["configuration"]), code=True),
            ]
        )
    columns = [
        "data",
        "target",
        "method",
        "seed",
        "best (%)",
        "last (%)",
        "validation (%)",
        "step",
        "seconds",
        "record",
        "command",
    ]
    notes = [
        "best: target accuracy of the model with the best validation accuracy on the source "
        "domains, at the step given; last: of the model after the last step; validation: that of "
        "the best model.",
        "A run repeats bit for bit on a processor with the same number of threads; a path or a "
        "device may have to be adapted. A click on a command selects all of it.",
    ]
    table = Table("All runs", columns, rows, notes, left=[1, 2, 10])
    summary = f"{counted(len(rows), 'run')} with their records and the commands that repeat them"
    return Section("runs", "Reproducing each run", [Details(summary, [table], printed=False)])


def relative_link(path: Path, folder: Path) -> str:
    """The address of `path` from a page in `folder`."""
    return quote(Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix())


def duration(seconds: float | int) -> str:
    """A time in words.

    >>> duration(42.3), duration(125), duration(9000)
    ('42 s', '2 min 5 s', '2 h 30 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def _percent(fraction: float) -> Entry:
    return Entry(f"{100 * fraction:.2f}", sort=100 * fraction)


def _data_table(records: Sequence[dict[str, Any]]) -> Table:
    """One row a data set."""
    rows: dict[tuple[str, str], list[str]] = {}
    splits: dict[tuple[str, str], set[str]] = {}
    for record in records:
        data = record["data"]
        key = (data["name"], data["digest"])
        splits.setdefault(key, set()).add(record["split"]["digest"][:12])
        images, classes = data.get("images") or {}, data.get("classes") or []
        counts = [f"{name} ({images[name]:,})" for name in data["domains"] if name in images]
        rows[key] = [
            data["name"],
            ", ".join(counts) or listed(data["domains"]),
            f"{len(classes)}" if classes else "–",
            f"{sum(images.values()):,}" if images else "–",
            str(len(data.get("skipped") or [])),
            data["digest"][:12],
        ]
    columns = ["data", "domains (images)", "classes", "images", "left out", "digest", "split"]
    texts = [
        [*line, next(iter(of)) if len(of) == 1 else f"{len(of)} splits"]
        for line, of in zip(rows.values(), splits.values(), strict=True)
    ]
    return plain_table("Data", columns, texts, left=[1, 5, 6])
