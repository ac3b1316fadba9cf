"""`gradsurgery similarity`: do gradients agree more within a domain than across domains?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradsurgery.cli import options as opt
from gradsurgery.cli.live import displayed
from gradsurgery.cli.train import continuable

if TYPE_CHECKING:
    from gradsurgery.documents.similarity_record import SimilarityOptions, SimilarityStudy


@opt.takes_training_options
def similarity(
    data: opt.DataArgument,
    *,
    target: Annotated[str, typer.Option("--target", help="The domain that is held out.")],
    method: Annotated[
        str, typer.Option("--method", help="That trains; see `gradsurgery methods`.")
    ] = "agr-sum",
    seeds: opt.SeedsOption = None,
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
    training: dict[str, Any],
) -> None:
    """Train, and measure the cosine similarity of single images' gradients on the way.

    Writes the paper's figure 2: pairs of images within a domain against pairs across domains, all
    of one class at a time. The same command again goes on where it was interrupted.
    """
    from gradsurgery.training.allocator import keep_freed_memory

    keep_freed_memory()  # before torch allocates anything
    from gradsurgery.documents.similarity_record import SimilarityOptions
    from gradsurgery.errors import ArgumentError

    if every < 1 or samples_per_domain < 2:
        raise ArgumentError(
            f"--every is 1 or more and --samples-per-domain 2 or more, found {every} and "
            f"{samples_per_domain}"
        )
    options = SimilarityOptions(
        every=every, samples_per_domain=samples_per_domain, all_domains=all_domains
    )
    run = training | {"data": data, "target": target, "method": method}
    study, directory = run_study(run, seeds or "3", options, out, cache)
    print_study(study, directory)


def run_study(
    run: dict[str, Any],
    seeds: str,
    options: "SimilarityOptions",
    out: Path | None,
    cache: Path | None,
) -> "tuple[SimilarityStudy, Path]":
    """Train and measure with every seed; the study, and the folder that it is in.

    run: options of `RunConfiguration` without a seed.
    seeds: as the command line takes them.
    """
    from gradsurgery.data import open_source
    from gradsurgery.studies.similarity_study import study_similarity
    from gradsurgery.sweep.plan import parse_seeds
    from gradsurgery.training import RunConfiguration
    from gradsurgery.training.run import check_domains, prepare_images

    configurations = [RunConfiguration(**run, seed=seed) for seed in parse_seeds(seeds)]
    first = configurations[0]
    source = open_source(first.data)
    check_domains(first, source.name, source.domains)
    directory = out or Path("similarity") / source.name / first.target / first.method
    with continuable(), displayed(first.method) as report:
        images = prepare_images(source, first, cache, report)
        study = study_similarity(configurations, options, images, directory, report)
    return study, directory


def print_study(study: "SimilarityStudy", directory: Path) -> None:
    """Write tables and figure into `directory`, and print what came out."""
    from gradsurgery.atomic import atomic_file
    from gradsurgery.report.figures.similarity import similarity_figure
    from gradsurgery.report.figures.style import save
    from gradsurgery.report.similarity_summary import (
        similarity_csv,
        similarity_markdown,
        similarity_section,
    )

    for name, text in (
        ("similarity.md", similarity_markdown(study)),
        ("similarity.csv", similarity_csv(study)),
    ):
        with atomic_file(directory / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    png, _ = save(similarity_figure(study), directory / "similarity")
    for sentence in similarity_section(study).sentences:
        print(sentence)
    print(f"figure: {png}\nmeasurements: {directory / 'similarity.json'}")
