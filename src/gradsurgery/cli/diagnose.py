"""`gradsurgery diagnose`: where the domains of a data set conflict."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from gradsurgery.cli import options as opt
from gradsurgery.cli.live import displayed
from gradsurgery.cli.train import continuable
from gradsurgery.errors import ArgumentError

if TYPE_CHECKING:
    from gradsurgery.documents.diagnosis_record import Diagnosis

_SHORT_RUN = 50  # steps


class _Asked(NamedTuple):
    """What is the same whatever is diagnosed; `looks` are options of `DiagnosisOptions`."""

    data: str
    looks: dict[str, Any]
    out: Path | None
    cache: Path | None


@opt.takes_training_options
def diagnose(
    data: opt.DataArgument,
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
        str, typer.Option("--method", help="That trains; see `gradsurgery methods`.")
    ] = "deep-all",
    seed: Annotated[int, typer.Option("--seed", help="Of everything random.")] = 0,
    every: Annotated[
        int, typer.Option("--every", help="Steps between looks, where it trains.")
    ] = 10,
    repeats: Annotated[
        int, typer.Option("--repeats", help="Batches of every domain to take the mean over.")
    ] = 4,
    by_layer: Annotated[
        bool, typer.Option("--by-layer", help="Every layer by itself, rather than blocks.")
    ] = False,
    all_domains: Annotated[
        bool, typer.Option("--all-domains", help="Look at the held-out domain as well.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Default: diagnosis/<data>, or the run's folder.")
    ] = None,
    cache: opt.CacheOption = None,
    training: dict[str, Any],
) -> None:
    """Say where the gradients of the domains conflict, by layers, and what Agr-Sum leaves.

    With --target it trains for --iterations steps (50 where not given) and looks on the way; with
    --iterations 0, or without --target, it looks at the weights as they are. Each look is at
    --batch-size training images per domain (32 where not given), in evaluation mode.
    """
    from gradsurgery.training.allocator import keep_freed_memory

    keep_freed_memory()  # before torch allocates anything
    if every < 1 or repeats < 1:
        raise ArgumentError(f"--every and --repeats are 1 or more, found {every} and {repeats}")
    looks = {"repeats": repeats, "every": every, "by_layer": by_layer, "seed": seed}
    looks["all_domains"] = all_domains
    asked = _Asked(data, looks, out, cache)
    if run is not None:
        _check_alone(training, target)
        diagnosis, directory = _of_run(asked, run, training)
    else:
        options = training | {"method": method, "seed": seed}
        diagnosis, directory = _of_backbone(asked, target, options)
    write_diagnosis(diagnosis, directory)


def _check_alone(training: dict[str, Any], target: str | None) -> None:
    """What a run has been trained with is in its record."""
    given = set(training) - {"batch_size", "device", "skip_bad"}
    if target is not None:
        given.add("target")
    if given:
        name = sorted(given)[0].replace("_", "-")
        raise ArgumentError(
            f"--{name} comes from the run's record; leave it out, or leave out --run"
        )


def _of_run(asked: _Asked, run: Path, training: dict[str, Any]) -> "tuple[Diagnosis, Path]":
    from gradsurgery.data import open_source
    from gradsurgery.documents.diagnosis_record import DiagnosisOptions
    from gradsurgery.studies.diagnosis_study import diagnose_run, finished_record
    from gradsurgery.training.run import prepare_images

    configuration = finished_record(run).configuration
    size = training.get("batch_size", configuration.batch_size)
    with displayed(str(run)) as report:
        images = prepare_images(open_source(asked.data), configuration, asked.cache, report)
    options = DiagnosisOptions(**asked.looks, batch_size=size)
    diagnosis = diagnose_run(run, options, images, training.get("device", "auto"))
    return diagnosis, asked.out or run


def _of_backbone(
    asked: _Asked, target: str | None, training: dict[str, Any]
) -> "tuple[Diagnosis, Path]":
    from gradsurgery.data import open_source
    from gradsurgery.documents.diagnosis_record import DiagnosisOptions
    from gradsurgery.studies.diagnosis_study import diagnose_training, diagnose_weights
    from gradsurgery.training import RunConfiguration
    from gradsurgery.training.run import check_domains, prepare_images

    source = open_source(asked.data)
    steps = training.pop("iterations", 0 if target is None else _SHORT_RUN)
    if target is None and steps:
        raise ArgumentError(
            f"--iterations {steps} needs a domain to hold out; give --target, or look at the "
            "weights as they are with --iterations 0"
        )
    configuration = RunConfiguration(
        **{"batch_size": 32, **training},
        data=asked.data,
        target=target or source.domains[0],
        iterations=max(steps, 1),
    )
    if steps:
        check_domains(configuration, source.name, source.domains)
    options = DiagnosisOptions(**asked.looks, batch_size=configuration.batch_size)
    directory = asked.out or Path("diagnosis") / source.name
    with continuable(), displayed(configuration.backbone) as report:
        images = prepare_images(source, configuration, asked.cache, report)
        if steps:
            diagnosis = diagnose_training(configuration, options, images, directory, report)
        else:
            diagnosis = diagnose_weights(configuration, options, images, target=target)
    return diagnosis, directory


def write_diagnosis(diagnosis: "Diagnosis", directory: Path) -> None:
    """Write record, tables and figures into `directory`, and print the sentences."""
    from gradsurgery.atomic import atomic_file
    from gradsurgery.report.diagnosis_text import diagnosis_markdown, diagnosis_sentences
    from gradsurgery.report.figures.conflict import conflict_figures
    from gradsurgery.report.figures.style import save

    diagnosis.save(directory)
    with atomic_file(directory / "diagnosis.md") as temporary:
        temporary.write_text(diagnosis_markdown(diagnosis), encoding="utf-8")
    for name, figure in conflict_figures(diagnosis).items():
        save(figure, directory / name)
    for sentence in diagnosis_sentences(diagnosis):
        print(sentence)
    print(f"tables and figures: {directory}")
