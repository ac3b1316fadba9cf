"""Shows how a sweep gets on: a live panel on a terminal, a line a run elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console

if TYPE_CHECKING:
    from rich.console import RenderableType

    from gradsurgery.sweep.schedule import Show, SweepProgress

_SHOWN_RUNS = 12


class SweepDisplay(NamedTuple):
    """show: what `run_sweep` tells about its runs; decoded: how many images, of how many."""

    show: "Show"
    decoded: Callable[[int, int], None]


@contextmanager
def sweep_displayed(title: str) -> Iterator[SweepDisplay]:
    """Callbacks that show the sweep's progress on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield SweepDisplay(_print_line, lambda done, total: None)
        return
    from rich.live import Live
    from rich.text import Text

    with Live(console=console, transient=True, refresh_per_second=4) as live:

        def show(progress: "SweepProgress", line: str) -> None:
            if line:
                live.console.print(line, markup=False, highlight=False)
            live.update(panel(title, progress))

        def decoded(done: int, total: int) -> None:
            live.update(Text(f"{title}  decoding images {done}/{total}"))

        yield SweepDisplay(show, decoded)


def panel(title: str, progress: "SweepProgress") -> "RenderableType":
    """Counts, the time left, the runs under way, and the best method of every target so far."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    counts = Table.grid(padding=(0, 2))
    finished = progress.found + progress.done
    counts.add_row(
        Text(title, style="bold"),
        ProgressBar(total=progress.total, completed=finished + progress.failed, width=24),
        Text(f"{finished} done of {progress.total}"),
        Text(f"{len(progress.running)} running"),
        Text(f"{progress.failed} failed", style="red" if progress.failed else ""),
        Text(f"{progress.aside} elsewhere" if progress.aside else ""),
        Text(f"time left {time_left(progress)}"),
    )
    runs = Table.grid(padding=(0, 2))
    for run, training in list(progress.running.items())[:_SHOWN_RUNS]:
        at = "starting"
        if training is not None:
            at = f"{training.stage} {training.done}/{training.total}"
        runs.add_row(Text("  " + run), Text(at))
    best = Table.grid(padding=(0, 2))
    for (data, target), (accuracy, method) in list(progress.best.items())[:_SHOWN_RUNS]:
        best.add_row(Text(f"  best on {data} {target}"), Text(f"{accuracy:.1%}"), Text(method))
    return Group(counts, runs, best)


def time_left(progress: "SweepProgress") -> str:
    """Hours, minutes and seconds, or a dash where nothing is known yet."""
    seconds = progress.seconds_left()
    return "–" if seconds is None else str(timedelta(seconds=round(seconds)))


def _print_line(progress: "SweepProgress", line: str) -> None:
    if line:
        left = "" if not progress.seconds_left() else f" (time left {time_left(progress)})"
        print(line + left, file=sys.stderr, flush=True)
