"""Commands that train in order to measure: `gradsurgery similarity`, `diagnose` and `study`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gradsurgery.atomic import check_folder
from gradsurgery.cli import options as opt
from gradsurgery.cli.finished_runs import print_sentences
from gradsurgery.cli.live import continuable, displayed, study_displayed
from gradsurgery.cli.train import check_target
from gradsurgery.data import open_source, prepare
from gradsurgery.documents.configuration import RunConfiguration, options_of
from gradsurgery.documents.data_options import listed_names
from gradsurgery.documents.document import folder_name
from gradsurgery.documents.plan import number_or_text, parse_seeds
from gradsurgery.documents.record import Record
from gradsurgery.documents.studies import DiagnosisOptions, SimilarityOptions
from gradsurgery.documents.tasks_vs_domains import TasksOptions, TasksStudy
from gradsurgery.doors import Kind, entry_names, is_door
from gradsurgery.errors import ArgumentError
from gradsurgery.report.report import write_diagnosis, write_similarity, write_tasks_study
from gradsurgery.studies.diagnosis import diagnose_run, diagnose_training, diagnose_weights
from gradsurgery.studies.similarity import study_similarity
from gradsurgery.studies.tasks_vs_domains import study_tasks
from gradsurgery.training import device as devices
from gradsurgery.training.run import check_run, prepare_images


@opt.takes_options_of(SimilarityOptions, RunConfiguration, without=["seed"])
def similarity(
    *,
    seeds: opt.SeedsOption = None,
    config: opt.ConfigOption = None,
    print_config: opt.PrintConfigOption = False,
    out: Annotated[
        Path | None, typer.Option(help="Default: similarity/<data>/<target>/<method>.")
    ] = None,
    cache: opt.CacheOption = None,
    options: dict[str, Any],
) -> None:
    """Train, and measure the cosine similarity of single images' gradients on the way.

    Writes the paper's figure 2: pairs of images within a domain against pairs across domains, all
    of one class at a time. The same command again goes on where it was interrupted.
    """
    chosen = opt.configured(config, options, ["seeds", *SimilarityOptions.model_fields])
    written = written_seeds(chosen.pop("seeds", None))
    run_study(chosen, seeds or written, out, cache, print_config=print_config)


def written_seeds(found: Any) -> str:
    """The seeds that a file says, as the command line takes them; three where it says none."""
    if isinstance(found, list):
        return "".join(f"{seed}," for seed in found)
    return "3" if found is None else str(found)


def run_study(
    chosen: dict[str, Any], seeds: str, out: Path | None, cache: Path | None, *, print_config: bool
) -> None:
    """Train and measure with every seed, write what came out, and print it.

    chosen: options of a run, and of the study; the run's seed is one of `seeds`, as the command
        line takes them.
    """
    measured, run = opt.parted(chosen, SimilarityOptions)
    options = SimilarityOptions(**measured)
    numbers = parse_seeds(seeds)
    check_target(run)
    configurations = [RunConfiguration(**run | {"seed": seed}) for seed in numbers]
    first = configurations[0]
    if print_config:
        listed = ",".join(map(str, numbers)) + ","
        opt.print_yaml(
            first.model_dump(exclude={"seed"}) | {"seeds": listed} | options.model_dump()
        )
        return
    if out is not None:
        check_folder(out)
    devices.keep_freed_memory()  # before torch allocates anything
    devices.device_of(first)  # raises where it cannot be had
    source = open_source(first.data, **first.reading)
    check_run(first, source.name, source.domains)
    directory = out or Path(
        "similarity", *map(folder_name, (source.name, first.target, first.method))
    )
    check_folder(directory)
    with continuable(), displayed(first.method) as report:
        images = prepare_images(source, first, cache, report)
        study = study_similarity(configurations, options, images, directory, report)
    print_sentences(write_similarity(study, directory))


_SHORT_RUN = 50  # steps


@opt.takes_options_of(DiagnosisOptions, RunConfiguration)
def diagnose(
    *,
    run: Annotated[
        Path | None, typer.Option(help="Folder of a finished run: diagnose its best model.")
    ] = None,
    config: opt.ConfigOption = None,
    print_config: opt.PrintConfigOption = False,
    out: Annotated[
        Path | None, typer.Option(help="Default: diagnosis/<data>, or the run's folder.")
    ] = None,
    cache: opt.CacheOption = None,
    options: dict[str, Any],
) -> None:
    """Say where the gradients of the domains conflict, by layers, and what Agr-Sum leaves.

    With --target it trains by deep-all, or --method, for --iterations steps (50 where not given)
    and measures on the way; with --iterations 0, or without --target, it measures the weights as
    they are. It measures --batch-size training images per domain (32 where not given), in
    evaluation mode.
    """
    measured, given = opt.parted(
        opt.configured(config, options, DiagnosisOptions.model_fields), DiagnosisOptions
    )
    if run is not None:
        configuration = _recorded(run, given)
        sizes = {"batch_size": configuration.batch_size, "seed": 0} | given
    else:
        configuration = _assumed(given)
        sizes = configuration.model_dump()
    measuring = DiagnosisOptions(**measured, batch_size=sizes["batch_size"], seed=sizes["seed"])
    if print_config:
        as_given = {"target": given.get("target"), "iterations": _steps(given)}  # even none
        everything = {} if run is not None else configuration.model_dump() | as_given
        everything = {name: value for name, value in everything.items() if value is not None}
        opt.print_yaml(everything | given | measuring.model_dump())
        return
    if out is not None:
        check_folder(out)
    devices.keep_freed_memory()  # before torch allocates anything
    devices.resolve_device(given.get("device", "auto"))  # raises where it cannot be had
    source = open_source(given.get("data", configuration.data), **configuration.reading)
    directory = out or run or Path("diagnosis") / folder_name(source.name)
    check_folder(directory)
    trains = run is None and _steps(given)
    if trains:
        check_run(configuration, source.name, source.domains)
    with displayed(str(run or configuration.backbone)) as report:
        images = prepare_images(source, configuration, cache, report)
        if trains:
            with continuable():
                diagnosis = diagnose_training(configuration, measuring, images, directory, report)
    if run is not None:
        diagnosis = diagnose_run(run, measuring, images, given.get("device", "auto"))
    elif not trains:
        diagnosis = diagnose_weights(configuration, measuring, images, target=given.get("target"))
    print_sentences(write_diagnosis(diagnosis, directory))


def _recorded(run: Path, given: dict[str, Any]) -> RunConfiguration:
    """The configuration of a finished run, which is not given anew but for where to work on it."""
    free = {*options_of("place"), *DiagnosisOptions.model_fields, "backbone", "skip_bad"}
    if trained := sorted(set(given) - free):
        name = trained[0].replace("_", "-")
        raise ArgumentError(
            f"--{name} comes from the run's record; leave it out, or leave out --run"
        )
    configuration = Record.load(run / Record.file_name).configuration
    kinds: dict[str, Kind] = {"backbone": "backbone", "data": "source"}
    for name, kind in kinds.items():
        named = getattr(configuration, name)
        if name not in given and (is_door(named) or named in entry_names(kind)):
            raise ArgumentError(
                f"the run's {name} {named!r} is code of another package, which a record does not "
                f"get to run; give it again as {'DATA' if name == 'data' else '--backbone'}"
            )
    return configuration


def _assumed(given: dict[str, Any]) -> RunConfiguration:
    """The configuration of a run of few steps, or of none."""
    target, steps = given.get("target"), _steps(given)
    if target is None and steps:
        raise ArgumentError(
            f"--iterations {steps} needs a domain to hold out; give --target, or measure the "
            "weights as they are with --iterations 0"
        )
    assumed: dict[str, Any] = {"batch_size": 32, "method": "deep-all", "target": "none"}
    return RunConfiguration(**assumed | given | {"iterations": 1 if steps == 0 else steps})


def _steps(given: dict[str, Any]) -> Any:
    """How many to train for, which may be anything that a file says."""
    return given.get("iterations", 0 if given.get("target") is None else _SHORT_RUN)


def _help(field: str) -> str:
    """Its description, and that the values are separated by commas."""
    described = TasksOptions.model_fields[field].description or ""
    return f"{described.rstrip('.')}; separated by commas."


app = typer.Typer(help="Train many small runs and measure what rules do.", no_args_is_help=True)

_LISTED = ("tasks", "groupings", "rules", "measure_at")


@app.callback()
def _studies() -> None:
    """A command of its own for every study."""


@app.command("tasks-vs-domains")
@opt.takes_options_of(TasksOptions, without=_LISTED)
def tasks_vs_domains(
    *,
    tasks: Annotated[str | None, typer.Option(help=_help("tasks"))] = None,
    groupings: Annotated[str | None, typer.Option(help=_help("groupings"))] = None,
    rules: Annotated[str | None, typer.Option(help=_help("rules"))] = None,
    measure_at: Annotated[str | None, typer.Option(help=_help("measure_at"))] = None,
    seeds: Annotated[str, typer.Option(help="A count, a range (0-4) or a list (0,1,2).")] = "20",
    dial: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE,VALUE",
            help="Other values of groups, batch_size, noise, contradiction, scale; one at a time.",
        ),
    ] = None,
    dial_seeds: Annotated[str, typer.Option(help="Of these runs.")] = "5",
    stored: Annotated[
        Path | None,
        typer.Option("--from", help="Folder of a finished study: write its tables and figures."),
    ] = None,
    device: opt.DeviceOption = "auto",
    out: Annotated[Path | None, typer.Option(help="Default: tasks-vs-domains/<data>.")] = None,
    cache: opt.CacheOption = None,
    options: dict[str, Any],
) -> None:
    """Compare losses of several tasks with losses of several domains, under like conditions.

    The same network, images, optimiser, steps and seeds, and other groups of losses: what each rule
    takes out of the sum of their gradients, and what it comes to. The same command again goes on
    where it was interrupted.
    """
    if stored is not None:
        print_sentences(write_tasks_study(TasksStudy.load(stored), out or stored))
        return
    listed = {"tasks": tasks, "groupings": groupings, "rules": rules}
    chosen = options | {
        name: listed_names(text) for name, text in listed.items() if text is not None
    }
    if measure_at is not None:
        chosen["measure_at"] = [_whole(text) for text in listed_names(measure_at)]
    studied = TasksOptions(**chosen)
    dials = dict(_dial(text) for text in dial or [])
    if out is not None:
        check_folder(out)
    devices.keep_freed_memory()  # before torch allocates anything
    devices.resolve_device(device)  # raises where it cannot be had
    source = open_source(studied.data, classes=studied.classes)
    directory = out or Path("tasks-vs-domains", folder_name(source.name))
    check_folder(directory)
    with continuable(), study_displayed() as report:
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
    print_sentences(write_tasks_study(study, directory))


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ArgumentError(f"--measure-at takes steps, e.g. 0,20,60, found {text!r}")
    return int(text)


def _dial(text: str) -> tuple[str, list[float]]:
    """A dial and its values from NAME=VALUE,VALUE."""
    name, equals, listed = text.partition("=")
    values = [number_or_text(value) for value in listed_names(listed)]
    numbers = [float(value) for value in values if not isinstance(value, str)]
    if not equals or not numbers or len(numbers) < len(values):
        raise ArgumentError(f"--dial takes NAME=VALUE,VALUE, e.g. groups=2,5, found {text!r}")
    return name.replace("-", "_"), numbers
