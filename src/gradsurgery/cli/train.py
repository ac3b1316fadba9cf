"""`gradsurgery train`: one run."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from gradsurgery.cli import options as opt
from gradsurgery.cli.live import displayed
from gradsurgery.data import open_source
from gradsurgery.documents.configuration import RunConfiguration, read_mapping
from gradsurgery.documents.record import Record
from gradsurgery.training import device
from gradsurgery.training import train as train_run
from gradsurgery.training.directory import folder_name
from gradsurgery.training.tensorboard import event_log


@opt.takes_run_options
def train(
    data: Annotated[str | None, typer.Argument(metavar="DATA", help=opt.DATA_HELP)] = None,
    *,
    target: Annotated[
        str | None, typer.Option("--target", help="The domain that is held out.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method", help="See `gradsurgery methods`; also objective+rule. Default: agr-sum."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of everything random. Default: 0.")
    ] = None,
    config: opt.ConfigOption = None,
    print_config: opt.PrintConfigOption = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Default: runs/<data>/<target>/<method>/seed-<seed>."),
    ] = None,
    cache: opt.CacheOption = None,
    tensorboard: opt.TensorboardOption = False,
    options: dict[str, Any],
) -> None:
    """Train on every domain but the target, and test on the target.

    The options' defaults are the paper's protocol; the digit sets have small ones of their own.
    The same command again continues a run that was interrupted.
    """
    given = {"data": data, "target": target, "method": method, "seed": seed}
    configuration = RunConfiguration(**configured(config, given, options))
    if print_config:
        opt.print_yaml(configuration.model_dump())
        return
    run_one(configuration, out, cache, tensorboard=tensorboard)


def configured(
    config: Path | None, given: dict[str, Any], options: dict[str, Any]
) -> dict[str, Any]:
    """The options in a file, with those in their place that a command was given."""
    written = {} if config is None else read_mapping(config, "configuration")
    given = {name: value for name, value in given.items() if value is not None}
    return opt.merged(written, given | options)


def run_one(
    configuration: RunConfiguration,
    out: Path | None,
    cache: Path | None,
    *,
    tensorboard: bool = False,
) -> None:
    """Do one run and print its result."""
    device.keep_freed_memory()  # before torch allocates anything
    source = open_source(configuration.data)
    c = configuration
    directory = out or run_directory(
        Path("runs") / folder_name(source.name), c.target, c.method, c.seed
    )
    finished = (directory / Record.file_name).exists()
    with continuable(), displayed(configuration.method) as shown, ExitStack() as stack:
        report = stack.enter_context(event_log(directory, shown)) if tensorboard else shown
        record = train_run(configuration, directory, report, cache, opened=source)
    if finished:
        print("this run was finished before")
    print(result_line(record))
    print(f"record: {directory / Record.file_name}")


def result_line(record: Record) -> str:
    """What came out, in a line."""
    best, last = record.result.best, record.result.last
    model = f"best model, step {best.step}"
    if best.averaged_from is not None:
        model = f"average of steps {best.averaged_from} to {best.step}"
    return (
        f"accuracy on {record.configuration.target} {best.target_accuracy:.1%} "
        f"({model}, validation {best.validation_accuracy:.1%}), "
        f"{last.target_accuracy:.1%} (last model, step {last.step})"
    )


@contextmanager
def continuable() -> Iterator[None]:
    """Say how to go on after an interruption, and exit with 130."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted; repeat the same command to continue", file=sys.stderr)
        raise typer.Exit(130) from None


def run_directory(out: Path, target: str, method: str, seed: int) -> Path:
    """Where a run is kept: `OUT/<target>/<method>/seed-<seed>`."""
    return out / folder_name(target) / folder_name(method) / f"seed-{seed}"
