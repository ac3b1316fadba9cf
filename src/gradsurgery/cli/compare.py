"""`gradsurgery compare`: methods x targets x seeds, one run after the other."""

import itertools
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from gradsurgery.cli import options as opt
from gradsurgery.cli.live import displayed
from gradsurgery.cli.options import without_none
from gradsurgery.cli.show import print_tables
from gradsurgery.cli.train import continuable, result_line, run_directory
from gradsurgery.errors import ArgumentError, GradsurgeryError

if TYPE_CHECKING:
    from gradsurgery.data import ImageSet
    from gradsurgery.training import RunConfiguration


def compare(
    data: opt.DataArgument,
    *,
    methods: Annotated[
        str,
        typer.Option("--methods", help="Names, separated by commas, or all: the paper's eight."),
    ] = "deep-all,agr-sum",
    targets: Annotated[
        str, typer.Option("--targets", help="Domains, separated by commas, or all.")
    ] = "all",
    seeds: Annotated[
        str, typer.Option("--seeds", help="A count (3), a range (0-4) or a list (0,1,2).")
    ] = "3",
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
    split_seed: opt.SplitSeedOption = None,
    split_per_run: opt.SplitPerRunOption = False,
    skip_bad: opt.SkipBadOption = False,
    out: Annotated[Path | None, typer.Option("--out", help="Default: runs/<data>.")] = None,
    cache: opt.CacheOption = None,
) -> None:
    """Train every method on every target with every seed, and print the table.

    Runs whose record is there already are not repeated: the same command again goes on where it
    was interrupted. Run k of every method has the same initial weights and the same batches.
    """
    given = without_none(locals(), "methods", "targets", "seeds", "settings", "out", "cache")
    run_all(
        given | {"settings": opt.settings_from(settings)}, Grid(methods, targets, seeds), out, cache
    )


class Grid(NamedTuple):
    """Methods, targets and seeds as they were given."""

    methods: str
    targets: str
    seeds: str


def run_all(options: dict[str, Any], grid: Grid, out: Path | None, cache: Path | None) -> None:
    """Do the runs that are missing, then print the table; raises at the end if any failed."""
    from gradsurgery.training.allocator import keep_freed_memory

    keep_freed_memory()  # before torch allocates anything
    from gradsurgery.algorithms import METHODS, settings_of
    from gradsurgery.data import open_source, prepare
    from gradsurgery.training import RunConfiguration, TrainingProgress
    from gradsurgery.training.averaging import average_settings
    from gradsurgery.training.record import RECORD_FILE
    from gradsurgery.training.run import check_domains

    seeds = parse_seeds(grid.seeds)
    source = open_source(options["data"])
    settings = options.pop("settings")
    configurations = [
        RunConfiguration(
            **options,
            target=target,
            method=method,
            seed=seed,
            settings=settings_of(method, settings) | average_settings(settings),
        )
        for target, method, seed in itertools.product(
            _names("target", grid.targets, source.domains),
            _names("method", grid.methods, tuple(METHODS)),
            seeds,
        )
    ]
    used = {key for configuration in configurations for key in configuration.settings}
    if unused := sorted(set(settings) - used):
        raise ArgumentError(f"no method of this comparison has the hyperparameter {unused[0]!r}")
    for configuration in configurations:
        check_domains(configuration, source.name, source.domains)
    with displayed(source.name, lines=False) as report:
        images = prepare(
            source,
            size=configurations[0].image_size,
            cache=cache,
            skip_bad=configurations[0].skip_bad,
            progress=lambda done, total: report(TrainingProgress("images", done, total)),
        )
    out = out or Path("runs") / source.name
    with continuable():
        failures = _run_each(configurations, images, out)
    finished = [path for c in configurations if (path := _directory(out, c) / RECORD_FILE).exists()]
    if finished:
        print_tables(finished)
    if failures:
        raise GradsurgeryError(
            f"{len(failures)} of {len(configurations)} runs failed: {'; '.join(failures)}"
        )


def parse_seeds(text: str) -> list[int]:
    """Seeds of a count ("3": 0, 1, 2), a range with its end ("0-4") or a list ("0,1,2").

    Raises `ArgumentError` for anything else.
    """
    if re.fullmatch(r"\d+", text) and int(text) > 0:
        return list(range(int(text)))
    if re.fullmatch(r"\d+(,\d+)+,?|\d+,", text):
        return list(dict.fromkeys(int(part) for part in text.split(",") if part))
    if match := re.fullmatch(r"(\d+)-(\d+)", text):
        first, last = int(match[1]), int(match[2])
        if first <= last:
            return list(range(first, last + 1))
    raise ArgumentError(
        f"seeds must be a count (3), a range (0-4) or a list (0,1,2), found {text!r}"
    )


def _names(kind: str, text: str, known: tuple[str, ...]) -> list[str]:
    """Names separated by commas, each once, or all there are."""
    if text == "all":
        return list(known)
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise ArgumentError(f"no {kind} is named; give all, or some of {', '.join(known)}")
    return names


def _directory(out: Path, configuration: "RunConfiguration") -> Path:
    return run_directory(out, configuration.target, configuration.method, configuration.seed)


def _run_each(configurations: list["RunConfiguration"], images: "ImageSet", out: Path) -> list[str]:
    """Do the runs; those that fail are named and the others go on."""
    from gradsurgery.training import train
    from gradsurgery.training.record import RECORD_FILE

    failures = []
    for position, configuration in enumerate(configurations, start=1):
        directory = _directory(out, configuration)
        run = f"{configuration.target} {configuration.method} seed {configuration.seed}"
        title = f"[{position}/{len(configurations)}] {run}"
        before = " (finished before)" if (directory / RECORD_FILE).exists() else ""
        try:
            with displayed(title, lines=False) as report:
                record = train(configuration, directory, report, opened=images)
        except GradsurgeryError as error:
            failures.append(f"{run}: {error}")
            print(f"{title}: failed: {error}", file=sys.stderr, flush=True)
        else:
            print(f"{title}: {result_line(record)}{before}", flush=True)
    return failures
