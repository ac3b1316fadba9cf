"""`gradsurgery diagnose`: where the domains of a data set conflict."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gradsurgery.cli import options as opt
from gradsurgery.cli.live import displayed
from gradsurgery.cli.show import print_sentences
from gradsurgery.cli.train import continuable
from gradsurgery.data import open_source
from gradsurgery.documents.configuration import RunConfiguration, folder_name, options_of
from gradsurgery.documents.record import Record
from gradsurgery.documents.studies import DiagnosisOptions
from gradsurgery.doors import Kind, entry_names, is_door
from gradsurgery.errors import ArgumentError
from gradsurgery.report.report import write_diagnosis
from gradsurgery.studies.diagnosis import diagnose_run, diagnose_training, diagnose_weights
from gradsurgery.training import device
from gradsurgery.training.run import check_run, prepare_images

_SHORT_RUN = 50  # steps


@opt.takes_options_of(DiagnosisOptions, RunConfiguration)
def diagnose(
    *,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Folder of a finished run: diagnose its best model."),
    ] = None,
    config: opt.ConfigOption = None,
    print_config: opt.PrintConfigOption = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Default: diagnosis/<data>, or the run's folder.")
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
        everything = {} if run is not None else configuration.model_dump() | _untrained(given)
        everything = {name: value for name, value in everything.items() if value is not None}
        opt.print_yaml(everything | given | measuring.model_dump())
        return
    device.keep_freed_memory()  # before torch allocates anything
    source = open_source(given.get("data", configuration.data), **configuration.reading)
    directory = out or run or Path("diagnosis") / folder_name(source.name)
    if run is not None:
        with displayed(str(run)) as report:
            images = prepare_images(source, configuration, cache, report)
        diagnosis = diagnose_run(run, measuring, images, given.get("device", "auto"))
    elif _steps(given):
        check_run(configuration, source.name, source.domains)
        with continuable(), displayed(configuration.backbone) as report:
            images = prepare_images(source, configuration, cache, report)
            diagnosis = diagnose_training(configuration, measuring, images, directory, report)
    else:
        with continuable(), displayed(configuration.backbone) as report:
            images = prepare_images(source, configuration, cache, report)
            target = given.get("target")
            diagnosis = diagnose_weights(configuration, measuring, images, target=target)
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


def _untrained(given: dict[str, Any]) -> dict[str, Any]:
    """What a run that is none has in the place of a target and of steps."""
    return {"target": given.get("target"), "iterations": _steps(given)}
