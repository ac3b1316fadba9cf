"""Options that several commands share; those of a run are the fields of its configuration."""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.errors import ArgumentError

DATA_HELP = (
    "rotated-digits, colored-digits, pacs, vlcs, office-home (also pacs:PATH …), hf://owner/name, "
    "a folder domain/class/image, Parquet files, or package.module:Source."
)
DataArgument = Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)]
CacheOption = Annotated[
    Path | None, typer.Option("--cache", help="Folder in which decoded images are kept.")
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="A YAML file of options by name (learning_rate: 1e-4); options given here take their "
        "place.",
    ),
]
PrintConfigOption = Annotated[
    bool,
    typer.Option(
        "--print-config", help="Print all options as YAML, for --config, and do nothing else."
    ),
]
MethodsOption = Annotated[
    str | None,
    typer.Option(
        "--methods",
        help="Names, separated by commas, or all: the paper's eight. Default: deep-all,agr-sum.",
    ),
]
TargetsOption = Annotated[
    str | None,
    typer.Option(
        "--targets",
        help="Domains to hold out in turn, separated by commas, or all (default). A name with a "
        "comma is quoted as in a CSV file: '\"a, b\",c'.",
    ),
]
SeedsOption = Annotated[
    str | None,
    typer.Option("--seeds", help="A count (3, the default), a range (0-4) or a list (0,1,2)."),
]
TensorboardOption = Annotated[
    bool,
    typer.Option("--tensorboard", help="Write TensorBoard's event files into the run's folder."),
]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Say how many runs there are and how long they will take."),
]

# What a command has arguments or options of its own for.
_OWN = ("data", "target", "method", "seed")


class LauncherName(StrEnum):
    """Where runs are worked on."""

    LOCAL = "local"
    RAY = "ray"


class LaunchOptions(NamedTuple):
    """How the runs of a plan are worked on, as the command line has it."""

    launcher: str = LauncherName.LOCAL
    workers: int | None = None
    runs_per_gpu: int = 1
    ray_address: str | None = None
    retries: int = 0
    tensorboard: bool = False
    cache: Path | None = None


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
            "there are processors for --threads each, up to 8.",
        ),
    ] = None,
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


def takes_run_options(command: Command) -> Command:
    """The command with the options of a run beside its own.

    It is called with those that were given as `options`, a dictionary for `RunConfiguration`; one
    that was not given takes the data set's default.
    """
    fields = [name for name in RunConfiguration.model_fields if name not in _OWN]
    return _with_options(command, map(_parameter, fields), "options", _gathered)


def takes_launch_options(command: Command) -> Command:
    """The command with the options of `LaunchOptions`, which it is called with as `launch`."""
    declared = inspect.signature(_launch_options, eval_str=True).parameters.values()
    return _with_options(command, declared, "launch", lambda given: LaunchOptions(**given))


def _parameter(name: str) -> inspect.Parameter:
    """The option of the command line for a field of `RunConfiguration`: None where not given."""
    field = RunConfiguration.model_fields[name]
    flag, metavar, kind = f"--{name.replace('_', '-')}", None, _plain_type(field.annotation)
    if name == "settings":
        flag, metavar, kind = "--set", "NAME=VALUE", list[str]
    elif kind is list:
        metavar, kind = "DOMAIN", list[str]
    elif kind is bool:
        flag = f"{flag}/--no-{flag[2:]}"
    option = typer.Option(
        flag, help=field.description, metavar=metavar, rich_help_panel="Options of a run"
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _plain_type(annotation: Any) -> Any:
    """The type that the command line reads: the configuration checks the rest."""
    if isinstance(annotation, types.UnionType):
        return next(part for part in annotation.__args__ if part is not types.NoneType)
    origin = typing.get_origin(annotation)
    return str if origin is typing.Literal else origin or annotation


def _gathered(given: dict[str, Any]) -> dict[str, Any]:
    settings = settings_from(given.pop("settings"))
    options = {name: value for name, value in given.items() if value not in (None, [], ())}
    return options | ({"settings": settings} if settings else {})


def _with_options(
    command: Command,
    declared: Iterable[inspect.Parameter],
    name: str,
    gathered: Callable[[dict[str, Any]], Any],
) -> Command:
    """The command with `declared` parameters too, handed on together as its argument `name`."""
    shared = {parameter.name: parameter for parameter in declared}
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


def merged(written: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Options of a file, those that were given in their place; `settings` name by name."""
    settings = written.get("settings")
    both = isinstance(settings, dict) and "settings" in given
    return written | given | ({"settings": settings | given["settings"]} if both else {})


def print_yaml(content: dict[str, Any]) -> None:
    """Print options as YAML, in their order."""
    import yaml

    print(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), end="")
