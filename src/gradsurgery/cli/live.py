"""Shows how work gets on, on standard error: live on a terminal, elsewhere lines or nothing."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeft
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from gradsurgery.studies.tasks_vs_domains import StudyProgress
    from gradsurgery.sweep.schedule import Show, SweepProgress
    from gradsurgery.training.progress import ProgressCallback, TrainingProgress

_SHOWN_RUNS = 12
_STAGES = {
    "images": " decoding",
    "features": " frozen layers",
    "resuming": " going on",
    "training": "",
    "testing": " testing",
}


def note(text: str) -> None:
    """Say on standard error what somebody may want to know."""
    print(f"note: {text}", file=sys.stderr)


@contextmanager
def continuable() -> Iterator[None]:
    """Say how to go on after an interruption, and exit with 130."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted; repeat the same command to continue", file=sys.stderr)
        raise typer.Exit(130) from None


@contextmanager
def displayed(title: str, *, lines: bool = True) -> Iterator["ProgressCallback"]:
    """A callback that shows a run's progress on standard error.

    Where that is no terminal it prints a line a validation, nothing without `lines`.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _print_line if lines else lambda _: None
        return
    wide = console.width >= 100  # the figures matter more than the bar
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        *([BarColumn(bar_width=16)] if wide else []),
        TextColumn("{task.fields[count]}"),
        TextColumn("{task.fields[figures]}"),
        TimeLeft(),
        console=console,
        transient=True,
        refresh_per_second=5,
    )
    task = bar.add_task(title, total=None, count="preparing", figures="")
    stage, validation = "", ""

    def report(progress: "TrainingProgress") -> None:
        nonlocal stage, validation
        if progress.note is not None:
            console.print(progress.note, markup=False, highlight=False)
            return
        if progress.stage != stage:
            stage = progress.stage
            name = title + _STAGES[stage]
            bar.reset(task, description=name, total=progress.total, count="", figures="")
        if progress.validation_accuracy is not None:
            validation = f"val {progress.validation_accuracy:.1%}"
        count = f"{progress.done}/{progress.total}"
        figures = f"{_figures(progress)}  {validation}".strip()
        bar.update(task, completed=progress.done, count=count, figures=figures)

    with bar:
        yield report


def _print_line(progress: "TrainingProgress") -> None:
    total = progress.total
    if progress.note is not None:
        _write(progress.note)
        return
    if progress.stage == "images" and progress.done == total:
        _write(f"decoded {total} images")
    if progress.stage == "features" and progress.done == total:
        _write(f"computed what the frozen layers make of {total} images, once for all steps")
    if progress.stage == "resuming":
        _write(f"going on from step {progress.done} of {total}")
    if progress.validation_accuracy is not None:
        _write(
            f"step {progress.done}/{total}  {_figures(progress)}  "
            f"validation {progress.validation_accuracy:.1%}"
        )


def _write(line: str) -> None:
    """Print a line with its end at once: an interruption must not come between the two."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _figures(progress: "TrainingProgress") -> str:
    figures = {
        "loss {:.3f}": progress.loss,
        "agreeing {:.0%}": progress.agreeing,
        "data wait {:.0%}": progress.data_wait,
    }
    return "  ".join(form.format(value) for form, value in figures.items() if value is not None)


@contextmanager
def sweep_displayed(title: str) -> Iterator["Show"]:
    """A callback that shows the sweep's progress on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _print_run
        return
    with Live(console=console, transient=True, refresh_per_second=4) as live:

        def show(progress: "SweepProgress", line: str) -> None:
            if line:
                live.console.print(line, markup=False, highlight=False)
            live.update(panel(title, progress))

        yield show


def panel(title: str, progress: "SweepProgress") -> RenderableType:
    """Counts, the time left, the runs under way, and the best method of every target so far."""
    counts = Table.grid(padding=(0, 2))
    finished = progress.found + progress.done
    counts.add_row(
        Text(title, style="bold"),
        ProgressBar(total=progress.total, completed=finished + progress.failed, width=24),
        Text(f"{finished} done of {progress.total}"),
        Text(f"{len(progress.running)} running"),
        Text(f"{progress.failed} failed", style="red" if progress.failed else ""),
        Text(f"{progress.aside} elsewhere" if progress.aside else ""),
        Text(f"time left {time_left(progress.seconds_left())}"),
    )
    runs = Table.grid(padding=(0, 2))
    for run, at in list(progress.running.items())[:_SHOWN_RUNS]:
        stage = "starting" if at is None else f"{at.stage} {at.done}/{at.total}"
        runs.add_row(Text("  " + run), Text(stage))
    best = Table.grid(padding=(0, 2))
    for (data, target), (accuracy, method) in list(progress.best.items())[:_SHOWN_RUNS]:
        best.add_row(Text(f"  best on {data} {target}"), Text(f"{accuracy:.1%}"), Text(method))
    return Group(counts, runs, best)


def time_left(seconds: float | None) -> str:
    """Hours, minutes and seconds, or a dash where nothing is known yet."""
    return "–" if seconds is None else str(timedelta(seconds=round(seconds)))


def _print_run(progress: "SweepProgress", line: str) -> None:
    if line:
        seconds = progress.seconds_left()
        left = f" (time left {time_left(seconds)})" if seconds else ""
        _write(line + left)


@contextmanager
def study_displayed() -> Iterator[Callable[["StudyProgress"], None]]:
    """A callback that shows how far a study of many small runs is; elsewhere a line a run."""
    console = Console(stderr=True)
    began = time.monotonic()
    with console.status("preparing") if console.is_terminal else nullcontext() as status:

        def report(progress: "StudyProgress") -> None:
            left = None
            if progress.steps:
                spent = time.monotonic() - began
                left = spent * (progress.all_steps - progress.steps) / progress.steps
            line = f"{progress.runs} of {progress.all_runs} runs, time left {time_left(left)}"
            if status is not None:
                status.update(line)
            elif (run := progress.ended) is not None:
                dial = "" if run.dial is None else f", {run.dial} {run.value:g}"
                what = f"{run.grouping} by {run.rule}, seed {run.seed}{dial}"
                _write(f"{what}: loss {run.losses[-1]:.3f}; {line}")

        yield report


@contextmanager
def images_displayed(
    doing: str, total: int | None, *, shown: bool = True
) -> Iterator[Callable[..., None]]:
    """A callback that shows how many images are done, of `total` if known, on a terminal alone."""
    console = Console(stderr=True)
    if not (shown and console.is_terminal):
        yield lambda _done, _total=None: None
        return
    columns = [TextColumn(doing), BarColumn(), MofNCompleteColumn(), TimeLeft()]
    if total is None:
        speed = TextColumn("{task.completed} pictures, {task.fields[speed]} a second")
        columns = [speed, TimeElapsedColumn()]
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(doing, total=total, speed="–")

        def tell(done: int, total: int | None = total) -> None:
            elapsed = bar.tasks[0].elapsed
            speed = f"{done / elapsed:.0f}" if elapsed else "–"
            bar.update(task, completed=done, total=total, speed=speed)

        yield tell
