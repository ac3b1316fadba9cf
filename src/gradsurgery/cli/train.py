"""`gradsurgery train`: one run."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradsurgery.cli import options as opt
from gradsurgery.cli.live import displayed

if TYPE_CHECKING:
    from gradsurgery.training import Record


@opt.takes_training_options
def train(
    data: opt.DataArgument,
    *,
    target: Annotated[str, typer.Option("--target", help="The domain that is held out.")],
    method: Annotated[
        str | None,
        typer.Option(
            "--method", help="See `gradsurgery methods`; also objective+rule. Default: agr-sum."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of everything random in the run.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Default: runs/<data>/<target>/<method>/seed-<seed>."),
    ] = None,
    cache: opt.CacheOption = None,
    tensorboard: opt.TensorboardOption = False,
    training: dict[str, Any],
) -> None:
    """Train on every domain but the target, and test on the target.

    The options' defaults are the paper's protocol; the digit sets have small ones of their own.
    The same command again continues a run that was interrupted.
    """
    options = training | {"data": data, "target": target, "seed": seed}
    if method is not None:
        options["method"] = method
    run_one(options, out, cache, tensorboard=tensorboard)


def run_one(
    options: dict[str, Any], out: Path | None, cache: Path | None, *, tensorboard: bool = False
) -> None:
    """Do one run and print its result."""
    from gradsurgery.training.allocator import keep_freed_memory

    keep_freed_memory()  # before torch allocates anything
    from gradsurgery.data import open_source
    from gradsurgery.training import RunConfiguration
    from gradsurgery.training import train as train_run
    from gradsurgery.training.record import RECORD_FILE
    from gradsurgery.training.tensorboard import event_log

    configuration = RunConfiguration(**options)
    source = open_source(configuration.data)
    directory = out or run_directory(
        Path("runs") / source.name, configuration.target, configuration.method, configuration.seed
    )
    finished = (directory / RECORD_FILE).exists()
    with continuable(), displayed(configuration.method) as shown, ExitStack() as stack:
        report = stack.enter_context(event_log(directory, shown)) if tensorboard else shown
        record = train_run(configuration, directory, report, cache, opened=source)
    if finished:
        print("this run was finished before")
    print(result_line(record))
    print(f"record: {directory / RECORD_FILE}")


def result_line(record: "Record") -> str:
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
    from gradsurgery.training.directory import folder_name

    return out / folder_name(target) / method / f"seed-{seed}"
