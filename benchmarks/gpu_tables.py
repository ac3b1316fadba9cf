"""The tables of `gpu.py`, from the lines of JSON that it wrote."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tabulate import tabulate

Row = dict[str, Any]


def print_tables(paths: Iterable[Path]) -> None:
    """A table a part; of what was measured twice the last counts."""
    rows = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    for part, table in (
        ("machine", None),
        ("rules", rules_table),
        ("steps", steps_table),
        ("command-line", command_line_table),
        ("launches", launches_table),
        ("sharing", sharing_table),
    ):
        found = [row for row in rows if row["part"] == part]
        if table is None:
            print("; ".join(sorted({f"{r['card']}, torch {r['torch']}" for r in found})))
        elif found:
            print(f"\n{part}\n{table(found, rows)}", flush=True)


def rules_table(rows: list[Row], _: list[Row]) -> str:
    """Milliseconds, of one call and queued, and the ratios to the sum of the gradients."""
    base = {row["domains"]: row for row in rows if row["rule"] == "sum"}

    def cell(row: Row) -> str:
        total = base[row["domains"]]
        return (
            f"{row['ms']:.2f} ({row['ms'] / total['ms']:.1f} x); queued {row['queued_ms']:.2f} "
            f"({row['queued_ms'] / total['queued_ms']:.1f} x)"
        )

    return pivot(rows, "rule", lambda row: f"D = {row['domains']}", cell)


def steps_table(rows: list[Row], _: list[Row]) -> str:
    """Milliseconds; × Deep-All in the same way; queued milliseconds; peak memory."""
    base = {(r["network"], r["size"], *_way(r)): r["ms"] for r in rows if r["name"] == "deep-all"}

    def cell(row: Row) -> str:
        deep_all = base.get((row["network"], row["size"], *_way(row)))
        ratio = f" ({row['ms'] / deep_all:.2f})" if deep_all else ""
        return f"{row['ms']:.1f}{ratio} {row['queued_ms']:.1f} {row['gib']:.1f}G"

    head = "ms of one step (x Deep-All's in the same way), ms of one of several, peak GiB\n"
    return head + pivot(rows, "label", lambda row: f"{row['network'][:16]}:{row['size']}", cell)


def _way(row: Row) -> tuple[Any, ...]:
    return row["precision"], row["channels_last"], row["graph"]


def command_line_table(rows: list[Row], everything: list[Row]) -> str:
    """A step in a run, and the bare steps of the same method, network and precision."""
    table = []
    for row in rows:
        options = row["options"]
        bare = [
            f"{r['label']}: {r['queued_ms']:.1f}"
            for r in everything
            if r["part"] == "steps"
            and (r["network"], r["size"]) == (row["network"], row["size"])
            and r["name"] == options["method"]
            and r["precision"].replace("default", "float32") == options["precision"]
        ]
        table.append(
            [
                f"{row['network']}:{row['size']} {' '.join(options.values())}",
                f"{row['ms']:.1f}",
                f"{1e3 * row['cost']['seconds_per_step']:.1f}",
                f"{row['cost']['data_wait'] or 0:.0%}",
                f"{row['short_run_seconds']:.1f}",
                row["cost"].get("cuda_graph") or "",
                "; ".join(bare),
            ]
        )
    head = [
        "run",
        "ms a step",
        "by its record",
        "data wait",
        "short run, s",
        "graph",
        "bare, queued ms",
    ]
    return tabulate(table, head, disable_numparse=True)


def launches_table(rows: list[Row], _: list[Row]) -> str:
    """Launches (beyond the passes and the optimiser), synchronisations, copies."""

    def cell(row: Row) -> str:
        return (
            f"{row['launches']} ({row['beyond']['launches']}), {row['synchronisations']}, "
            f"{row['copies']}"
        )

    head = "launches (beyond passes and optimiser), synchronisations, copies\n"
    return head + pivot(rows, "method", lambda row: row["network"][:16], cell)


def sharing_table(rows: list[Row], _: list[Row]) -> str:
    """Steps a second of all runs together."""
    named = [{**row, "name": f"{row['workload']}, {row['way']}"} for row in rows]
    head = "steps a second of all runs together, by the number of runs\n"
    return head + pivot(
        named, "name", lambda row: str(row["runs"]), lambda row: f"{row['steps_a_second']:.1f}"
    )


def pivot(rows: list[Row], index: str, column: Any, cell: Any) -> str:
    """A line per `index`, a column per what `column` gives."""
    columns = list(dict.fromkeys(map(column, rows)))
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        lines.setdefault(row[index], {})[column(row)] = cell(row)
    body = [[name, *(cells.get(c, "") for c in columns)] for name, cells in lines.items()]
    return tabulate(body, ["", *columns], disable_numparse=True)
