"""`gradsurgery similarity`: do gradients agree more within a domain than across domains?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from gradsurgery.cli import options as opt
from gradsurgery.cli.live import displayed
from gradsurgery.cli.show import print_sentences
from gradsurgery.cli.train import check_target, continuable
from gradsurgery.data import open_source
from gradsurgery.documents.configuration import RunConfiguration, folder_name
from gradsurgery.documents.plan import parse_seeds
from gradsurgery.documents.studies import SimilarityOptions
from gradsurgery.report.report import write_similarity
from gradsurgery.studies.similarity import study_similarity
from gradsurgery.training import device
from gradsurgery.training.run import check_run, prepare_images


@opt.takes_options_of(SimilarityOptions, RunConfiguration, without=["seed"])
def similarity(
    *,
    seeds: opt.SeedsOption = None,
    config: opt.ConfigOption = None,
    print_config: opt.PrintConfigOption = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Default: similarity/<data>/<target>/<method>."),
    ] = None,
    cache: opt.CacheOption = None,
    options: dict[str, Any],
) -> None:
    """Train, and measure the cosine similarity of single images' gradients on the way.

    Writes the paper's figure 2: pairs of images within a domain against pairs across domains, all
    of one class at a time. The same command again goes on where it was interrupted.
    """
    chosen = opt.configured(config, options, ["seeds", *SimilarityOptions.model_fields])
    written = chosen.pop("seeds", "3")
    run_study(chosen, seeds or str(written), out, cache, print_config=print_config)


def run_study(
    chosen: dict[str, Any],
    seeds: str,
    out: Path | None,
    cache: Path | None,
    *,
    print_config: bool = False,
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
    device.keep_freed_memory()  # before torch allocates anything
    source = open_source(first.data, **first.reading)
    check_run(first, source.name, source.domains)
    directory = out or Path(
        "similarity", *map(folder_name, (source.name, first.target, first.method))
    )
    with continuable(), displayed(first.method) as report:
        images = prepare_images(source, first, cache, report)
        study = study_similarity(configurations, options, images, directory, report)
    print_sentences(write_similarity(study, directory))
