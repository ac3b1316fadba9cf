"""`gradsurgery train`: one run."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradsurgery.cli import options as opt
from gradsurgery.cli.live import displayed
from gradsurgery.cli.options import without_none

if TYPE_CHECKING:
    from gradsurgery.training import Record


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
    settings: opt.SetOption = None,
    backbone: opt.BackboneOption = None,
    weights: opt.WeightsOption = None,
    batch_norm: opt.BatchNormOption = None,
    iterations: opt.IterationsOption = None,
    batch_size: opt.BatchSizeOption = None,
    batches: opt.BatchesOption = None,
    learning_rate: opt.LearningRateOption = None,
    weight_decay: opt.WeightDecayOption = None,
    optimizer: opt.OptimizerOption = None,
    average: opt.AverageOption = None,
    validate_every: opt.ValidateEveryOption = None,
    image_size: opt.ImageSizeOption = None,
    device: opt.DeviceOption = None,
    precision: opt.PrecisionOption = None,
    seed: Annotated[int, typer.Option("--seed", help="Of everything random in the run.")] = 0,
    split_seed: opt.SplitSeedOption = None,
    split_per_run: opt.SplitPerRunOption = False,
    skip_bad: opt.SkipBadOption = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Default: runs/<data>/<target>/<method>/seed-<seed>."),
    ] = None,
    cache: opt.CacheOption = None,
) -> None:
    """Train on every domain but the target, and test on the target.

    The options' defaults are the paper's protocol; the digit sets have small ones of their own.
    The same command again continues a run that was interrupted.
    """
    given = without_none(locals(), "settings", "out", "cache")
    run_one(given | {"settings": opt.settings_from(settings)}, out, cache)


def run_one(options: dict[str, Any], out: Path | None, cache: Path | None) -> None:
    """Do one run and print its result."""
    from gradsurgery.training.allocator import keep_freed_memory

    keep_freed_memory()  # before torch allocates anything
    from gradsurgery.data import open_source
    from gradsurgery.training import RunConfiguration
    from gradsurgery.training import train as train_run
    from gradsurgery.training.record import RECORD_FILE

    configuration = RunConfiguration(**options)
    source = open_source(configuration.data)
    directory = out or run_directory(
        Path("runs") / source.name, configuration.target, configuration.method, configuration.seed
    )
    finished = (directory / RECORD_FILE).exists()
    with continuable(), displayed(configuration.method) as report:
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
    return out / target / method / f"seed-{seed}"
