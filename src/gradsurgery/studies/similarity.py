"""The paper's figure 2: train, and measure the similarity of gradients on the way."""

from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path

import numpy as np

from gradsurgery.backbones import Backbone
from gradsurgery.data import ImageSet, split_of
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.record import Record
from gradsurgery.documents.studies import (
    Measurement,
    SeedMeasurements,
    SimilarityOptions,
    SimilarityStudy,
)
from gradsurgery.errors import ArgumentError, DataError
from gradsurgery.gradients.similarity import (
    Indices,
    draw_samples,
    sample_cosines,
    within_and_across,
)
from gradsurgery.studies.observer import StepObserver, check_every_step
from gradsurgery.training import train
from gradsurgery.training.progress import ProgressCallback


def study_similarity(
    configurations: Sequence[RunConfiguration],
    options: SimilarityOptions,
    images: ImageSet,
    directory: Path,
    report: ProgressCallback | None = None,
) -> SimilarityStudy:
    """Train every run and measure within and across domains; write `similarity.json`.

    At steps 0, K, 2K, … with K = `options.every`, all samples are training images of one class,
    and the classes take turns. What is measured is in `similarity.json` of the run's folder at
    once: the same call again goes on where it was interrupted, to the same files.

    Args:
        configurations: of runs that differ in their seed alone.
        options: how to measure.
        images: the decoded data set.
        directory: receives a folder `seed-<seed>` a run and the study's `similarity.json`.
        report: called after every step.

    Raises `ArgumentError` where the runs differ in more than the seed or a folder holds a study of
    other options, `DataError` where no class has enough images in two domains, and what `train`
    raises.

    Source: Mansilla et al. 2021, figure 2.
    """
    first = configurations[0]
    check_every_step(first)
    for other in configurations[1:]:
        if different := sorted(set(first.differences(other)) - {"seed"}):
            raise ArgumentError(
                f"the runs of a study differ in their seed alone, found others in {different[0]}"
            )
    parts = [
        _measured_run(each, options, images, directory / f"seed-{each.seed}", report)
        for each in configurations
    ]
    runs = [run for part in parts for run in part.runs]
    study = parts[0].model_copy(update={"runs": runs, "part": False})
    study.save(directory)
    return study


def _measured_run(
    configuration: RunConfiguration,
    options: SimilarityOptions,
    images: ImageSet,
    directory: Path,
    report: ProgressCallback | None,
) -> SimilarityStudy:
    """The run's measurements: those in `directory`, then those still to make."""
    everywhere, sources = list(images.domains), configuration.sources(images.domains)
    part = SimilarityStudy(
        configuration=configuration,
        options=options,
        data=images.name,
        domains=everywhere if options.all_domains else sources,
        classes=list(images.classes),
        runs=[SeedMeasurements(seed=configuration.seed, measurements=[])],
        part=True,
    )
    if (directory / SimilarityStudy.file_name).exists():
        part.runs = _found(part, directory).runs
    missing = part.missing()
    if (directory / Record.file_name).exists() and missing:
        raise DataError(
            f"{directory} holds a finished run that was not measured at step {missing[0]}; "
            "delete the folder, or choose another one"
        )
    if missing:
        pool = split_of(configuration, images, configuration.seed_of_split).train
        _check_feasible(pool, images, part)

        def measure(step: int, backbone: Backbone) -> None:
            part.runs[0].measurements.append(_measured(part, images, pool, step, backbone))
            part.save(directory)

        observer = StepObserver(missing, directory / SimilarityStudy.file_name, measure)
        train(configuration, directory, report, opened=images, observe=observer)
    return part


def _found(wanted: SimilarityStudy, directory: Path) -> SimilarityStudy:
    """The measurements in `directory`, which must be of the same run and options."""
    found = SimilarityStudy.load(directory)
    different = wanted.configuration.differences(found.configuration, "data")
    for name in SimilarityOptions.model_fields:
        here, there = getattr(wanted.options, name), getattr(found.options, name)
        if here != there:
            different[name] = here, there
    for name, (here, there) in different.items():
        raise ArgumentError(
            f"{directory} holds measurements with other options ({name}: {there!r} there, {here!r} "
            "here); choose another output folder, or delete this one"
        )
    return found


def _measured(
    part: SimilarityStudy,
    images: ImageSet,
    pool: Mapping[str, Indices],
    step: int,
    backbone: Backbone,
) -> Measurement:
    """One measurement, which is empty where fewer than two domains have enough images."""
    label = (step // part.options.every) % len(images.classes)
    chosen, skipped = draw_samples(
        images,
        pool,
        label=label,
        domains=part.domains,
        count=part.options.samples_per_domain,
        seed=part.configuration.seed,
        step=step,
    )
    found = Measurement(step=step, label=images.classes[label], skipped=skipped)
    if len(chosen) > 1:
        means = sample_cosines(backbone, images, chosen)
        found.domains = list(chosen)
        found.cosines = [[None if isnan(v) else v for v in row] for row in means.tolist()]
        found.within, found.across = within_and_across(means)
    return found


def _check_feasible(pool: Mapping[str, Indices], images: ImageSet, part: SimilarityStudy) -> None:
    """Raise `DataError` where no measurement could compare two domains."""
    domains, needed = part.domains, part.options.samples_per_domain
    counts = [np.bincount(images.label[pool[d]], minlength=len(images.classes)) for d in domains]
    if (np.array(counts) >= needed).sum(axis=0).max() < 2:
        raise DataError(
            f"no class of {images.name} has {needed} training images in two of the domains "
            f"{', '.join(domains)}; measure fewer samples per domain"
        )
