"""`gradsurgery similarity`: do gradients agree more within a domain than across domains?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from gradsurgery.cli import options as opt
from gradsurgery.cli.live import displayed
from gradsurgery.cli.train import configured, continuable
from gradsurgery.data import open_source
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.plan import parse_seeds
from gradsurgery.documents.similarity import SimilarityOptions
from gradsurgery.errors import ArgumentError
from gradsurgery.report.report import write_similarity
from gradsurgery.studies.similarity import study_similarity
from gradsurgery.training import device
from gradsurgery.training.directory import folder_name
from gradsurgery.training.run import check_run, prepare_images


@opt.takes_run_options
def similarity(
    data: Annotated[str | None, typer.Argument(metavar="DATA", help=opt.DATA_HELP)] = None,
    *,
    target: Annotated[
        str | None, typer.Option("--target", help="The domain that is held out.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", help="That trains; see `gradsurgery methods`. Default: agr-sum."),
    ] = None,
    seeds: opt.SeedsOption = None,
    config: opt.ConfigOption = None,
    every: Annotated[int, typer.Option("--every", help="Steps between measurements.")] = 10,
    samples_per_domain: Annotated[
        int,
        typer.Option("--samples-per-domain", help="Images of one class per domain, 2 or more."),
    ] = 8,
    all_domains: Annotated[
        bool, typer.Option("--all-domains", help="Measure the held-out domain as well.")
    ] = False,
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
    if every < 1 or samples_per_domain < 2:
        raise ArgumentError(
            f"--every is 1 or more and --samples-per-domain 2 or more, found {every} and "
            f"{samples_per_domain}"
        )
    measured = SimilarityOptions(
        every=every, samples_per_domain=samples_per_domain, all_domains=all_domains
    )
    given = {"data": data, "target": target, "method": method}
    run_study(configured(config, given, options), seeds or "3", measured, out, cache)


def run_study(
    run: dict[str, Any],
    seeds: str,
    options: SimilarityOptions,
    out: Path | None,
    cache: Path | None,
) -> None:
    """Train and measure with every seed, write what came out, and print it.

    run: options of `RunConfiguration`; its seed is one of `seeds`, as the command line takes them.
    """
    device.keep_freed_memory()  # before torch allocates anything
    configurations = [RunConfiguration(**run | {"seed": seed}) for seed in parse_seeds(seeds)]
    first = configurations[0]
    source = open_source(first.data)
    check_run(first, source.name, source.domains)
    directory = out or Path(
        "similarity", *map(folder_name, (source.name, first.target, first.method))
    )
    with continuable(), displayed(first.method) as report:
        images = prepare_images(source, first, cache, report)
        study = study_similarity(configurations, options, images, directory, report)
    print("\n".join(write_similarity(study, directory)))
