"""`gradsurgery diagnose`: where the domains of a data set conflict."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gradsurgery.cli import options as opt
from gradsurgery.cli.live import displayed
from gradsurgery.cli.train import configured, continuable
from gradsurgery.data import open_source
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.diagnosis import Diagnosis, DiagnosisOptions
from gradsurgery.documents.record import Record
from gradsurgery.doors import Kind, entry_names, is_door
from gradsurgery.errors import ArgumentError
from gradsurgery.report.report import write_diagnosis
from gradsurgery.studies.diagnosis import (
    diagnose_run,
    diagnose_training,
    diagnose_weights,
)
from gradsurgery.training import device
from gradsurgery.training.directory import folder_name
from gradsurgery.training.run import check_run, prepare_images

_SHORT_RUN = 50  # steps


@opt.takes_run_options
def diagnose(
    data: Annotated[str | None, typer.Argument(metavar="DATA", help=opt.DATA_HELP)] = None,
    *,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Folder of a finished run: diagnose its best model."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", help="The domain that is held out. Default: none, no training."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", help="That trains; see `gradsurgery methods`. Default: deep-all."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of everything random. Default: 0.")
    ] = None,
    config: opt.ConfigOption = None,
    print_config: opt.PrintConfigOption = False,
    every: Annotated[
        int | None,
        typer.Option("--every", help="Steps between measurements where it trains. Default: 10."),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(
            "--repeats", help="Batches of every domain to take the mean over. Default: 4."
        ),
    ] = None,
    by_layer: Annotated[
        bool | None,
        typer.Option("--by-layer", help="Measure every layer by itself, rather than blocks."),
    ] = None,
    all_domains: Annotated[
        bool | None,
        typer.Option("--all-domains", help="Measure the held-out domain as well."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Default: diagnosis/<data>, or the run's folder.")
    ] = None,
    cache: opt.CacheOption = None,
    options: dict[str, Any],
) -> None:
    """Say where the gradients of the domains conflict, by layers, and what Agr-Sum leaves.

    With --target it trains for --iterations steps (50 where not given) and measures on the way;
    with --iterations 0, or without --target, it measures the weights as they are. It measures
    --batch-size training images per domain (32 where not given), in evaluation mode.
    """
    given: dict[str, Any] = {"data": data, "target": target, "method": method, "seed": seed}
    given |= {"every": every, "repeats": repeats, "by_layer": by_layer, "all_domains": all_domains}
    chosen = configured(config, given, options)
    names = [name for name in DiagnosisOptions.model_fields if name not in ("seed", "batch_size")]
    measured = {name: chosen.pop(name) for name in names if name in chosen}
    for name in ("every", "repeats"):
        if (value := measured.get(name, 1)) < 1:
            raise ArgumentError(f"--{name} is 1 or more, found {value}")
    if print_config:
        opt.print_yaml(measured | chosen)
        return
    device.keep_freed_memory()  # before torch allocates anything
    if run is not None:
        diagnosis, directory = _of_run(run, chosen, measured, out, cache)
    else:
        diagnosis, directory = _of_backbone(chosen, measured, out, cache)
    print("\n".join(write_diagnosis(diagnosis, directory)))


def _of_run(
    run: Path,
    given: dict[str, Any],
    measured: dict[str, Any],
    out: Path | None,
    cache: Path | None,
) -> tuple[Diagnosis, Path]:
    """Of a finished run, whose record says what it was trained with."""
    trained = set(given) - {"backbone", "data", "batch_size", "device", "skip_bad", "seed"}
    if trained:
        name = sorted(trained)[0].replace("_", "-")
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
    options = DiagnosisOptions(
        **measured,
        batch_size=given.get("batch_size", configuration.batch_size),
        seed=given.get("seed", 0),
    )
    source = open_source(given.get("data", configuration.data))
    with displayed(str(run)) as report:
        images = prepare_images(source, configuration, cache, report)
    return diagnose_run(run, options, images, given.get("device", "auto")), out or run


def _of_backbone(
    given: dict[str, Any], measured: dict[str, Any], out: Path | None, cache: Path | None
) -> tuple[Diagnosis, Path]:
    """Of the weights as they are, or while they are trained."""
    if "data" not in given:
        raise ArgumentError("data is missing; give one")
    source = open_source(given["data"])
    target = given.get("target")
    steps = given.get("iterations", 0 if target is None else _SHORT_RUN)
    if target is None and steps:
        raise ArgumentError(
            f"--iterations {steps} needs a domain to hold out; give --target, or measure the "
            "weights as they are with --iterations 0"
        )
    assumed: dict[str, Any] = {"batch_size": 32, "method": "deep-all"}
    held_out = {"target": target or source.domains[0], "iterations": max(steps, 1)}
    configuration = RunConfiguration(**assumed | given | held_out)
    if steps:
        check_run(configuration, source.name, source.domains)
    options = DiagnosisOptions(
        **measured, batch_size=configuration.batch_size, seed=configuration.seed
    )
    directory = out or Path("diagnosis") / folder_name(source.name)
    with continuable(), displayed(configuration.backbone) as report:
        images = prepare_images(source, configuration, cache, report)
        if steps:
            diagnosis = diagnose_training(configuration, options, images, directory, report)
        else:
            diagnosis = diagnose_weights(configuration, options, images, target=target)
    return diagnosis, directory
