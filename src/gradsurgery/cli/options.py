"""Options that commands share; those of a run and of a study are the fields of their classes."""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
import yaml
from pydantic import BaseModel

from gradsurgery.cli.live import note
from gradsurgery.documents.configuration import RunConfiguration, known_options
from gradsurgery.documents.defaults import check_protocol
from gradsurgery.documents.document import read_mapping
from gradsurgery.documents.plan import PLAN_PARTS
from gradsurgery.doors import is_door
from gradsurgery.errors import ArgumentError, printable

DATA = typer.Argument(
    metavar="DATA",
    help="rotated-digits, colored-digits, coded-digits (also coded-digits:domains=8 …), pacs, "
    "vlcs, office-home (also pacs:PATH …), hf://owner/name, a folder domain/class/image, a table "
    "of paths (CSV, TSV, JSONL), Parquet files, or package.module:Source.",
)
MODEL = typer.Argument(
    metavar="MODEL", help="A run's or deployment's folder, a model.safetensors, or hf://owner/name."
)
OwnBackboneOption = Annotated[
    str | None, typer.Option(help="For a network of your own: package.module:function.")
]
DeviceOption = Annotated[
    str, typer.Option(help="auto (cuda where there is one, else cpu), cpu or cuda.")
]
PictureBatchOption = Annotated[
    int,
    typer.Option(
        min=1, max=10_000, help="Pictures that are read at a time, and that a GPU passes at once."
    ),
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Threads that decode. Default: one a processor.")
]
CacheOption = Annotated[Path | None, typer.Option(help="Folder in which decoded images are kept.")]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "--plan",
        help="A YAML file of options by name (learning_rate: 1e-4), a run's record.json, or a file "
        "of the parts of a plan; what is given here takes its place.",
    ),
]
PrintConfigOption = Annotated[
    bool,
    typer.Option(
        "--print-config", help="Print all options as YAML, for --config, and do nothing else."
    ),
]
TargetsOption = Annotated[
    str | None,
    typer.Option(
        help="Domains to hold out in turn, separated by commas, or all (default). A name with a "
        "comma is quoted as in a CSV file: '\"a, b\",c'."
    ),
]
SeedsOption = Annotated[
    str | None, typer.Option(help="A count (default 3, or a plan's), a range (0-4) or a list.")
]
TensorboardOption = Annotated[
    bool, typer.Option("--tensorboard", help="The same as --logger tensorboard.")
]
LoggerOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Send the run's figures to tensorboard (files in the run's folder), wandb, mlflow or "
        "package.module:Name, too. May be given several times.",
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say how many runs there are and how long they will take.")
]


class PlanOptions(NamedTuple):
    """The parts of a plan, and whether it is only spoken of."""

    config: ConfigOption = None
    print_config: PrintConfigOption = False
    methods: Annotated[
        str | None,
        typer.Option(
            help="Names, separated by commas, or all: the paper's eight. Default: the plan's, else "
            "deep-all,agr-sum."
        ),
    ] = None
    targets: TargetsOption = None
    seeds: SeedsOption = None
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=V1,V2",
            help="Values to try of an option or a hyperparameter, e.g. learning_rate=1e-5,1e-4.",
        ),
    ] = None
    dry_run: DryRunOption = False


class LaunchOptions(NamedTuple):
    """How the runs of a plan are worked on."""

    launcher: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Where runs are worked on: local (this machine), ray (a cluster) or "
            "package.module:Name.",
        ),
    ] = "local"
    workers: Annotated[
        int | None,
        typer.Option(
            help="Runs at a time. Default: --runs-per-gpu for every GPU; without one, as many as "
            "there are processors for --threads each, up to 8."
        ),
    ] = None
    runs_per_gpu: Annotated[int, typer.Option(help="Runs that share a GPU.")] = 1
    ray_address: Annotated[
        str | None, typer.Option(help="Of the cluster, or auto. Default: start one here.")
    ] = None
    retries: Annotated[
        int, typer.Option(min=0, help="How often a run that fails is tried again.")
    ] = 0
    tensorboard: TensorboardOption = False
    logger: LoggerOption = None
    cache: CacheOption = None


Command = Callable[..., None]


def takes_options_of(
    *kinds: type[BaseModel], without: Iterable[str] = (), only: Iterable[str] = ()
) -> Callable[[Command], Command]:
    """The command with fields of these kinds as options beside its own: all but some, or `only`.

    It is called with those that were given as `options`, a dictionary of fields; one that was not
    given takes its default. Of a field that two kinds have, the last one's is the option.
    """
    apart = set(without)
    declared = {
        name: _parameter(kind, name)
        for kind in kinds
        for name in only or kind.model_fields
        if name not in apart
    }
    return lambda command: _with_options(command, declared.values(), "options", _given)


def takes_run_options(command: Command) -> Command:
    """The command with the options of a run that a plan does not decide, as `options`."""
    return takes_options_of(RunConfiguration, without=PLAN_PARTS)(command)


def takes_plan(*without: str) -> Callable[[Command], Command]:
    """The command with all that says what many runs are, and how they are worked on.

    It is called with a `PlanOptions`, without some, as `plan`, a `LaunchOptions` as `launch`, and
    the options of a run that a plan does not decide as `options`.
    """
    return lambda command: takes_run_options(
        _takes(LaunchOptions, "launch", _takes(PlanOptions, "plan", command, without))
    )


def _takes(
    kind: type[PlanOptions | LaunchOptions],
    name: str,
    command: Command,
    without: Iterable[str] = (),
) -> Command:
    hints = typing.get_type_hints(kind, include_extras=True)
    declared = [
        inspect.Parameter(
            key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[key]
        )
        for key, default in kind._field_defaults.items()
        if key not in without
    ]
    return _with_options(command, declared, name, lambda given: kind(**given))


def loggers(names: list[str] | None, tensorboard: bool) -> tuple[str, ...]:
    """The loggers that were asked for, each once; raises where one is not to be had."""
    from gradsurgery.training.loggers import logger_class

    asked = tuple(dict.fromkeys([*(names or ()), *(["tensorboard"] if tensorboard else [])]))
    for name in asked:
        logger_class(name).check_installed()
    return asked


def _parameter(kind: type[BaseModel], name: str) -> inspect.Parameter:
    """The argument or option of the command line for a field: None where it is not given."""
    field = kind.model_fields[name]
    if name == "data":
        argument = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return inspect.Parameter(
            name, argument, default=None, annotation=Annotated[str | None, DATA]
        )
    flag, metavar, type_ = f"--{name.replace('_', '-')}", None, _plain_type(field.annotation)
    if name == "settings":
        flag, metavar, type_ = "--set", "NAME=VALUE", list[str]
    elif type_ is dict:
        metavar, type_ = "ROLE=NAME,…", str
    elif type_ is list:
        metavar, type_ = "DOMAIN", list[str]
    elif type_ is bool:
        flag = f"{flag}/--no-{flag[2:]}"
    panel = "Options of a run" if kind is RunConfiguration else None
    option = typer.Option(flag, help=field.description, metavar=metavar, rich_help_panel=panel)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[type_ | None, option],
    )


def _plain_type(annotation: Any) -> Any:
    """The type that the command line reads: the configuration checks the rest."""
    if isinstance(annotation, types.UnionType):
        return next(part for part in annotation.__args__ if part is not types.NoneType)
    origin = typing.get_origin(annotation)
    return str if origin is typing.Literal else origin or annotation


def _given(options: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in options.items() if value not in (None, [], ())}
    return given | ({"settings": settings_from(given["settings"])} if "settings" in given else {})


def _with_options(
    command: Command,
    declared: Iterable[inspect.Parameter],
    name: str,
    gathered: Callable[[dict[str, Any]], Any],
) -> Command:
    """The command with `declared` parameters in place of `name`, as which they are handed on."""
    shared = {parameter.name: parameter for parameter in declared}
    own = inspect.signature(command, eval_str=True).parameters

    @functools.wraps(command)
    def wrapper(**given: Any) -> None:
        command(**{name: gathered({key: given.pop(key) for key in shared})}, **given)

    parameters: list[inspect.Parameter] = []
    for key, parameter in own.items():
        parameters += shared.values() if key == name else [parameter]
    parameters.sort(key=lambda parameter: parameter.kind)  # arguments before options
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
    check_protocol(written, given)
    own, typed = written.get("settings"), given.get("settings")
    return written | given | ({"settings": own | typed} if isinstance(own, dict) and typed else {})


def configured(
    config: Path | None, given: dict[str, Any], also: Iterable[str] = ()
) -> dict[str, Any]:
    """The options in a file, with those in their place that a command was given.

    also: names in the file of what is no option of a run.
    """
    known = [*also, *known_options()]
    return merged({} if config is None else read_mapping(config, "configuration", known), given)


def parted(options: dict[str, Any], kind: type[BaseModel]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those that are fields of `kind` and none of a run's, and all others."""
    own = [name for name in kind.model_fields if name not in RunConfiguration.model_fields]
    others = {name: value for name, value in options.items() if name not in own}
    return {name: options[name] for name in own if name in options}, others


def print_yaml(content: dict[str, Any]) -> None:
    """Print options as YAML, in their order, and name the code of somebody that they name.

    What only reads never imports: whether there is such code is for a run to find out.
    """
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    if any(printable(line) != line for line in text.split("\n")):  # a mark that turns what follows
        text = yaml.safe_dump(content, sort_keys=False)
    print(text, end="")
    if names := printable(", ".join(dict.fromkeys(_foreign_names(content)))):
        note(f"{names} is not imported here, and not checked; a run imports it")


def _foreign_names(content: dict[str, Any]) -> Iterator[str]:
    """The names of the form package.module:Name in a configuration or a plan."""
    from gradsurgery.data.derived import PRESETS

    for key, value in content.items():
        if isinstance(value, dict) and key != "settings":
            yield from _foreign_names(value)
        elif key in ("method", "methods", "backbone", "data"):
            texts = value if isinstance(value, list) else [value]
            parts = [part for text in texts for part in str(text).split("+")]
            own = {"torchjd", *(PRESETS if key == "data" else ())}  # pacs:FOLDER
            yield from (p for p in parts if is_door(p) and p.partition(":")[0] not in own)
