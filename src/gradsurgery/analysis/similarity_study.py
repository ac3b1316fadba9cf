"""The paper's figure 2: train, and measure the similarity of gradients on the way."""

from collections.abc import Callable, Mapping, Sequence
from math import isnan
from pathlib import Path

import numpy as np

from gradsurgery.analysis.similarity import (
    Indices,
    draw_samples,
    sample_cosines,
    within_and_across,
)
from gradsurgery.analysis.similarity_record import (
    SIMILARITY_FILE,
    Measurement,
    RunSimilarity,
    SeedMeasurements,
    SimilarityOptions,
    SimilarityStudy,
)
from gradsurgery.backbones import Backbone
from gradsurgery.data import ImageSet, Split, draw_split
from gradsurgery.errors import ArgumentError, DataError
from gradsurgery.training import RunConfiguration, TrainingProgress, train
from gradsurgery.training.record import RECORD_FILE

Report = Callable[[RunConfiguration, TrainingProgress], None]


def study_similarity(
    configurations: Sequence[RunConfiguration],
    options: SimilarityOptions,
    images: ImageSet,
    directory: Path,
    report: Report | None = None,
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
        report: called after every step with the run that it is a step of.

    Raises `ArgumentError` where the runs differ in more than the seed or a folder holds a study of
    other options, `DataError` where no class has enough images in two domains, and what `train`
    raises.

    Source: Mansilla et al. 2021, figure 2.
    """
    first = configurations[0]
    for other in configurations[1:]:
        if different := sorted(set(first.differences(other)) - {"seed"}):
            raise ArgumentError(
                f"the runs of a study differ in their seed alone, found others in {different[0]}"
            )
    runs = []
    for configuration in configurations:
        told = None if report is None else _reporting(report, configuration)
        run = _measured_run(
            configuration, options, images, directory / f"seed-{configuration.seed}", told
        )
        runs.append(SeedMeasurements(seed=configuration.seed, measurements=run.measurements))
    study = SimilarityStudy(
        data=images.name,
        domains=_domains(first, options, images),
        classes=list(images.classes),
        configuration=first,
        options=options,
        runs=runs,
    )
    study.save(directory)
    return study


def _reporting(
    report: Report, configuration: RunConfiguration
) -> Callable[[TrainingProgress], None]:
    return lambda progress: report(configuration, progress)


def _domains(
    configuration: RunConfiguration, options: SimilarityOptions, images: ImageSet
) -> list[str]:
    if options.all_domains:
        return list(images.domains)
    return configuration.sources(images.domains)


def _measured_run(
    configuration: RunConfiguration,
    options: SimilarityOptions,
    images: ImageSet,
    directory: Path,
    report: Callable[[TrainingProgress], None] | None,
) -> RunSimilarity:
    """The run's measurements: those in `directory`, then those still to make."""
    run = RunSimilarity(configuration=configuration, options=options)
    if (directory / SIMILARITY_FILE).exists():
        run = RunSimilarity.load(directory)
        _check_same(configuration, options, run, directory)
    if (directory / RECORD_FILE).exists() and run.missing():
        raise DataError(
            f"{directory} holds a finished run that was not measured at step {run.missing()[0]}; "
            "delete the folder, or choose another one"
        )
    if run.missing():
        seed = configuration.seed if configuration.split_per_run else configuration.split_seed
        recorder = _Recorder(run, images, draw_split(images, seed=seed), directory)
        train(configuration, directory, report, opened=images, observe=recorder)
    return run


def _check_same(
    configuration: RunConfiguration,
    options: SimilarityOptions,
    found: RunSimilarity,
    directory: Path,
) -> None:
    different = dict(configuration.differences(found.configuration))
    different.pop("device", None)
    for name in SimilarityOptions.model_fields:
        here, there = getattr(options, name), getattr(found.options, name)
        if here != there:
            different[name] = here, there
    for name, (here, there) in different.items():
        raise ArgumentError(
            f"{directory} holds measurements with other options ({name}: {there!r} there, {here!r} "
            "here); choose another output folder, or delete this one"
        )


class _Recorder:
    """Measures a run's model at the steps that are missing, and saves each measurement at once."""

    def __init__(self, run: RunSimilarity, images: ImageSet, split: Split, directory: Path) -> None:
        self._run = run
        self._images = images
        self._pool = split.train
        self._directory = directory
        self._domains = _domains(run.configuration, run.options, images)
        self._missing = set(run.missing())
        _check_feasible(self._pool, images, self._domains, run.options)

    def __call__(self, step: int, backbone: Backbone) -> None:
        if any(earlier < step for earlier in self._missing):
            raise DataError(
                f"{self._directory} holds a run at step {step} that was not measured at step "
                f"{min(self._missing)}; delete the folder, or choose another one"
            )
        if step not in self._missing:
            return
        for leftover in self._directory.glob(f".{SIMILARITY_FILE}.*.tmp"):  # of a killed process
            leftover.unlink(missing_ok=True)
        self._run.measurements.append(self._measured(step, backbone))
        self._run.save(self._directory)
        self._missing.remove(step)

    def _measured(self, step: int, backbone: Backbone) -> Measurement:
        options, images = self._run.options, self._images
        label = (step // options.every) % len(images.classes)
        chosen, skipped = draw_samples(
            images,
            self._pool,
            label=label,
            domains=self._domains,
            count=options.samples_per_domain,
            seed=self._run.configuration.seed,
            step=step,
        )
        name = images.classes[label]
        if len(chosen) < 2:  # nothing to compare
            return Measurement(
                step=step,
                label=name,
                domains=[],
                cosines=[],
                within=None,
                across=None,
                skipped=skipped,
            )
        means = sample_cosines(backbone, images, chosen)
        within, across = within_and_across(means)
        return Measurement(
            step=step,
            label=name,
            domains=list(chosen),
            cosines=[[None if isnan(v) else v for v in row] for row in means.tolist()],
            within=within,
            across=across,
            skipped=skipped,
        )


def _check_feasible(
    pool: Mapping[str, Indices],
    images: ImageSet,
    domains: Sequence[str],
    options: SimilarityOptions,
) -> None:
    """Raise `DataError` where no measurement could compare two domains."""
    counts = [np.bincount(images.label[pool[d]], minlength=len(images.classes)) for d in domains]
    enough = (np.array(counts) >= options.samples_per_domain).sum(axis=0)
    if enough.max() < 2:
        raise DataError(
            f"no class of {images.name} has {options.samples_per_domain} training images in two of "
            f"the domains {', '.join(domains)}; measure fewer samples per domain"
        )
