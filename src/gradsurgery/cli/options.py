"""Options that several commands share."""

import functools
import inspect
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from gradsurgery.errors import ArgumentError

DataArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="rotated-digits, colored-digits, pacs, vlcs, office-home (also pacs:PATH …), "
        "hf://owner/name, a folder domain/class/image, or Parquet files.",
    ),
]
CacheOption = Annotated[Path | None, typer.Option("--cache", help="Folder of the decoded images.")]
MethodsOption = Annotated[
    str | None,
    typer.Option(
        "--methods",
        help="Names, separated by commas, or all: the paper's eight. Default: deep-all,agr-sum.",
    ),
]
TargetsOption = Annotated[
    str | None, typer.Option("--targets", help="Domains, separated by commas, or all (default).")
]
SeedsOption = Annotated[
    str | None,
    typer.Option("--seeds", help="A count (3, the default), a range (0-4) or a list (0,1,2)."),
]
TensorboardOption = Annotated[
    bool,
    typer.Option("--tensorboard", help="Write TensorBoard's event files into the run's folder."),
]


class LauncherName(StrEnum):
    """Where runs are worked on."""

    LOCAL = "local"
    RAY = "ray"


class LaunchOptions(NamedTuple):
    """How the runs of a plan are worked on, as the command line has it."""

    launcher: str = LauncherName.LOCAL
    workers: int | None = None
    threads: int = 1
    runs_per_gpu: int = 1
    ray_address: str | None = None
    retries: int = 0
    tensorboard: bool = False
    cache: Path | None = None


def _option(name: str, text: str, **more: Any) -> Any:
    return typer.Option(name, help=text, rich_help_panel="Training", **more)


def _step_options(
    *,
    backbone: Annotated[
        str | None, _option("--backbone", "A torchvision or timm classifier, or small-cnn.")
    ] = None,
    weights: Annotated[
        str | None, _option("--weights", "default (pretrained), none, or a file.")
    ] = None,
    batch_norm: Annotated[
        str | None,
        _option(
            "--batch-norm",
            "frozen, per-domain or pooled. Default: frozen, per-domain with weights none.",
        ),
    ] = None,
    iterations: Annotated[int | None, _option("--iterations", "Optimiser steps.")] = None,
    batch_size: Annotated[
        int | None, _option("--batch-size", "Images per source domain and step.")
    ] = None,
    batches: Annotated[
        str | None,
        _option(
            "--batches",
            "multi: one batch of every source domain. single: as many batches, all of one domain "
            "chosen at random at every step.",
        ),
    ] = None,
    passes: Annotated[
        str | None,
        _option(
            "--passes",
            "separate: a pass per domain. pooled: one for all. auto: the faster where both are "
            "exact.",
        ),
    ] = None,
    learning_rate: Annotated[float | None, _option("--learning-rate", "Of the optimiser.")] = None,
    weight_decay: Annotated[float | None, _option("--weight-decay", "Of the optimiser.")] = None,
    optimizer: Annotated[
        str | None, _option("--optimizer", "adam, adamw or sgd (momentum 0.9).")
    ] = None,
    average: Annotated[
        str | None,
        _option(
            "--average",
            "Of the weights over the steps: none, ema (exponential) or swad (over the valley of "
            "the validation loss).",
        ),
    ] = None,
) -> None:
    """The options that decide a training step; their names are `RunConfiguration`'s fields."""


def _run_options(
    *,
    validate_every: Annotated[
        int | None,
        _option(
            "--validate-every",
            "Steps between validations. Each writes a checkpoint, unless writing them takes more "
            "than a tenth of the run's time.",
        ),
    ] = None,
    log_conflict: Annotated[
        int | None,
        _option("--log-conflict", "Record every so many steps how the domains' gradients agree."),
    ] = None,
    image_size: Annotated[
        int | None, _option("--image-size", "Height and width in pixels.")
    ] = None,
    device: Annotated[str | None, _option("--device", "auto, cpu or cuda.")] = None,
    precision: Annotated[
        str | None, _option("--precision", "float32, bfloat16 or float16.")
    ] = None,
    split_seed: Annotated[
        int | None, _option("--split-seed", "Seed of the split, the same for all runs.")
    ] = None,
    split_per_run: Annotated[
        bool | None, _option("--split-per-run", "Draw the split from the run's own seed.")
    ] = None,
    without: Annotated[
        list[str] | None,
        _option("--without", "A source domain to leave out as well.", metavar="DOMAIN"),
    ] = None,
    skip_bad: Annotated[
        bool | None, _option("--skip-bad", "Leave out images that cannot be decoded.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        _option(
            "--set",
            "A hyperparameter of the method or the average, e.g. group-dro.eta=0.05; see "
            "`gradsurgery methods`.",
            metavar="NAME=VALUE",
        ),
    ] = None,
) -> None:
    """The other options of a run that every command which trains has."""


def _launch_options(
    *,
    launcher: Annotated[
        LauncherName, typer.Option("--launcher", help="This machine, or a Ray cluster.")
    ] = LauncherName.LOCAL,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            help="Runs at a time. Default: --runs-per-gpu for every GPU; without one, as many as "
            "there are processors, up to 8.",
        ),
    ] = None,
    threads: Annotated[
        int,
        typer.Option(
            "--threads",
            help="Processors that each run computes with; results depend on it to the last bit.",
        ),
    ] = 1,
    runs_per_gpu: Annotated[int, typer.Option("--runs-per-gpu", help="Runs that share a GPU.")] = 1,
    ray_address: Annotated[
        str | None,
        typer.Option("--ray-address", help="Of the cluster, or auto. Default: start one here."),
    ] = None,
    retries: Annotated[
        int, typer.Option("--retries", min=0, help="How often a run that fails is tried again.")
    ] = 0,
    tensorboard: TensorboardOption = False,
    cache: CacheOption = None,
) -> None:
    """How the runs of a plan are worked on; the names are `LaunchOptions`' fields."""


Command = Callable[..., None]


def takes_training_options(command: Command) -> Command:
    """The command with the options of a run beside its own.

    It is called with those that were given as `training`, a dictionary for `RunConfiguration`; one
    that was not given takes the data set's default.
    """

    def gathered(given: dict[str, Any]) -> dict[str, Any]:
        settings = settings_from(given.pop("settings"))
        options = {k: v for k, v in given.items() if v not in (None, [], ())}
        return options | ({"settings": settings} if settings else {})

    return _with_options(command, (_step_options, _run_options), "training", gathered)


def takes_launch_options(command: Command) -> Command:
    """The command with the options of `LaunchOptions`, which it is called with as `launch`."""
    return _with_options(command, (_launch_options,), "launch", dict)


def _with_options(
    command: Command,
    declared: Sequence[Command],
    name: str,
    gathered: Callable[[dict[str, Any]], dict[str, Any]],
) -> Command:
    """The command with the parameters of `declared`, handed on together as its argument `name`."""
    shared = {
        key: parameter
        for each in declared
        for key, parameter in inspect.signature(each, eval_str=True).parameters.items()
    }
    own = inspect.signature(command, eval_str=True).parameters

    @functools.wraps(command)
    def wrapper(**given: Any) -> None:
        command(**{name: gathered({key: given.pop(key) for key in shared})}, **given)

    parameters = [parameter for key, parameter in own.items() if key != name]
    parameters += shared.values()
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


def settings_from(texts: list[str] | None) -> dict[str, float | str]:
    """Hyperparameters from "name=value"; raises `ArgumentError` where that is not what is there."""
    settings: dict[str, float | str] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ArgumentError(f"--set takes NAME=VALUE, e.g. group-dro.eta=0.05, found {text!r}")
        try:
            settings[name] = float(value)
        except ValueError:
            settings[name] = value
    return settings
