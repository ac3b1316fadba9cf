"""Shows how a run gets on: a live line on a terminal, plain lines or nothing elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from gradsurgery.training.progress import ProgressCallback, TrainingProgress

_STAGES = {"images": " decoding", "resuming": " going on", "training": "", "testing": " testing"}


@contextmanager
def displayed(title: str, *, lines: bool = True) -> Iterator["ProgressCallback"]:
    """A callback that shows a run's progress on standard error.

    Where that is no terminal it prints a line a validation, nothing without `lines`.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        with _live(console, title) as report:
            yield report
    else:
        yield _print_line if lines else lambda _: None


@contextmanager
def _live(console: Console, title: str) -> Iterator["ProgressCallback"]:
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

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
            bar.reset(
                task,
                description=f"{title}{_STAGES[stage]}",
                total=progress.total,
                count="",
                figures="",
            )
        if progress.validation_accuracy is not None:
            validation = f"val {progress.validation_accuracy:.1%}"
        figures = "  ".join(filter(None, [_figures(progress), validation]))
        bar.update(
            task,
            completed=progress.done,
            count=f"{progress.done}/{progress.total}",
            figures=figures,
        )

    with bar:
        yield report


def _print_line(progress: "TrainingProgress") -> None:
    if progress.note is not None:
        _write(progress.note)
    if progress.stage == "images" and progress.done == progress.total:
        _write(f"decoded {progress.total} images")
    if progress.stage == "resuming":
        _write(f"going on from step {progress.done} of {progress.total}")
    if progress.validation_accuracy is not None:
        _write(
            f"step {progress.done}/{progress.total}  {_figures(progress)}  "
            f"validation {progress.validation_accuracy:.1%}"
        )


def _write(line: str) -> None:
    """Print a line with its end at once: an interruption must not come between the two."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _figures(progress: "TrainingProgress") -> str:
    figures = []
    if progress.loss is not None:
        figures.append(f"loss {progress.loss:.3f}")
    if progress.agreeing is not None:
        figures.append(f"agreeing {progress.agreeing:.0%}")
    if progress.data_wait is not None:
        figures.append(f"data wait {progress.data_wait:.0%}")
    return "  ".join(figures)
