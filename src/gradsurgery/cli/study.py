"""`gradsurgery study`: studies that train many small runs and measure what rules do in them."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from gradsurgery.cli import options as opt
from gradsurgery.cli.show import print_sentences
from gradsurgery.cli.train import continuable
from gradsurgery.data import open_source, prepare
from gradsurgery.documents.configuration import folder_name
from gradsurgery.documents.plan import names, number_or_text, parse_seeds
from gradsurgery.documents.tasks_vs_domains import TasksOptions, TasksStudy
from gradsurgery.errors import ArgumentError
from gradsurgery.training import device as devices

if TYPE_CHECKING:
    from gradsurgery.studies.tasks_vs_domains import StudyProgress


def _help(field: str) -> str:
    """Its description, and that the values are separated by commas."""
    described = TasksOptions.model_fields[field].description or ""
    return f"{described.rstrip('.')}; separated by commas."


app = typer.Typer(help="Train many small runs and measure what rules do.", no_args_is_help=True)

_LISTED = ("tasks", "groupings", "rules", "measure_at")
_SECONDS = 0.2  # between two looks at the time left


@app.callback()
def _studies() -> None:
    """A command of its own for every study."""


@app.command("tasks-vs-domains")
@opt.takes_options_of(TasksOptions, without=_LISTED)
def tasks_vs_domains(
    *,
    tasks: Annotated[str | None, typer.Option("--tasks", help=_help("tasks"))] = None,
    groupings: Annotated[str | None, typer.Option("--groupings", help=_help("groupings"))] = None,
    rules: Annotated[str | None, typer.Option("--rules", help=_help("rules"))] = None,
    measure_at: Annotated[
        str | None, typer.Option("--measure-at", help=_help("measure_at"))
    ] = None,
    seeds: Annotated[
        str, typer.Option("--seeds", help="A count, a range (0-4) or a list (0,1,2).")
    ] = "20",
    dial: Annotated[
        list[str] | None,
        typer.Option(
            "--dial",
            metavar="NAME=VALUE,VALUE",
            help="Other values of groups, batch_size, noise, contradiction, scale; one at a time.",
        ),
    ] = None,
    dial_seeds: Annotated[str, typer.Option("--dial-seeds", help="Of these runs.")] = "5",
    stored: Annotated[
        Path | None,
        typer.Option("--from", help="Folder of a finished study: write its tables and figures."),
    ] = None,
    device: opt.DeviceOption = "auto",
    out: Annotated[
        Path | None, typer.Option("--out", help="Default: tasks-vs-domains/<data>.")
    ] = None,
    cache: opt.CacheOption = None,
    options: dict[str, Any],
) -> None:
    """Compare losses of several tasks with losses of several domains, under like conditions.

    The same network, images, optimiser, steps and seeds, and other groups of losses: what each rule
    takes out of the sum of their gradients, and what it comes to. The same command again goes on
    where it was interrupted.
    """
    if stored is not None:
        print_sentences(_written(TasksStudy.load(stored), out or stored))
        return
    listed = {"tasks": tasks, "groupings": groupings, "rules": rules}
    chosen = options | {name: names(text) for name, text in listed.items() if text is not None}
    if measure_at is not None:
        chosen["measure_at"] = [_whole(text) for text in names(measure_at)]
    studied = TasksOptions(**chosen)
    dials = dict(_dial(text) for text in dial or [])
    devices.keep_freed_memory()  # before torch allocates anything
    source = open_source(studied.data, classes=studied.classes)
    directory = out or Path("tasks-vs-domains", folder_name(source.name))
    from gradsurgery.studies.tasks_vs_domains import study_tasks

    with continuable(), _displayed() as report:
        images = prepare(source, studied.image_size, cache, skip_bad=studied.skip_bad)
        study = study_tasks(
            studied,
            images,
            directory,
            seeds=parse_seeds(seeds),
            dials=dials,
            dial_seeds=parse_seeds(dial_seeds) if dials else [],
            device=device,
            report=report,
        )
    print_sentences(_written(study, directory))


def _written(study: TasksStudy, directory: Path) -> list[str]:
    from gradsurgery.report.tasks_text import write_tasks_study  # takes matplotlib

    return write_tasks_study(study, directory)


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ArgumentError(f"--measure-at takes steps, e.g. 0,20,60, found {text!r}")
    return int(text)


def _dial(text: str) -> tuple[str, list[float]]:
    """A dial and its values from NAME=VALUE,VALUE."""
    name, equals, listed = text.partition("=")
    values = [number_or_text(value) for value in names(listed)]
    numbers = [float(value) for value in values if not isinstance(value, str)]
    if not equals or not numbers or len(numbers) < len(values):
        raise ArgumentError(f"--dial takes NAME=VALUE,VALUE, e.g. groups=2,5, found {text!r}")
    return name.replace("-", "_"), numbers


@contextmanager
def _displayed() -> Iterator["Callable[[StudyProgress], None]"]:
    """A callback that shows how far the study is, and the time left, on standard error.

    A terminal has one line that changes; elsewhere there is a line a run.
    """
    console = Console(stderr=True)
    began = shown = time.monotonic()
    with console.status("preparing") if console.is_terminal else nullcontext() as status:

        def report(progress: "StudyProgress") -> None:
            nonlocal shown
            now = time.monotonic()
            left = "–"
            if progress.steps:
                rest = (now - began) * (progress.all_steps - progress.steps) / progress.steps
                left = str(timedelta(seconds=round(rest)))
            line = f"{progress.runs} of {progress.all_runs} runs, time left {left}"
            if status is not None and now - shown > _SECONDS:
                shown = now
                status.update(line)
            if status is None and (run := progress.ended) is not None:
                dial = "" if run.dial is None else f", {run.dial} {run.value:g}"
                what = f"{run.grouping} by {run.rule}, seed {run.seed}{dial}"
                print(f"{what}: loss {run.losses[-1]:.3f}; {line}", file=sys.stderr, flush=True)

        yield report
