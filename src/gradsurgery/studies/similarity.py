"""The paper's figure 2: train, and measure the similarity of gradients on the way."""

from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import CrossEntropyLoss

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
from gradsurgery.gradients.gradient_gram import gradient_gram
from gradsurgery.seeds import random_order
from gradsurgery.studies.measuring import (
    check_every_step,
    check_same,
    evaluating,
    labelled_images,
    observer_at,
)
from gradsurgery.training import checkpoint, train
from gradsurgery.training.progress import ProgressCallback, TrainingProgress

Indices = Int64[np.ndarray, " samples"]


class DrawnSamples(NamedTuple):
    """Images of one class: per domain their positions in the set, and who is left out and why."""

    chosen: dict[str, Indices]
    skipped: dict[str, str]


def draw_samples(
    images: ImageSet,
    pool: Mapping[str, Indices],
    *,
    label: int,
    domains: Sequence[str],
    count: int,
    seed: int,
    step: int,
) -> DrawnSamples:
    """Draw `count` different images of class `label` from each domain's `pool`.

    A domain that has fewer of them is left out. The draw depends on (seed, domain, step) alone.

    pool: by domain, positions in `images`. label: a position in `images.classes`.
    """
    chosen: dict[str, Indices] = {}
    skipped: dict[str, str] = {}
    for domain in domains:
        members = pool[domain][images.label[pool[domain]] == label]
        if len(members) < count:
            name = images.classes[label]
            skipped[domain] = f"{len(members)} training images of class {name}, {count} needed"
            continue
        chosen[domain] = members[
            random_order(len(members), seed, "similarity", domain, step)[:count]
        ]
    return DrawnSamples(chosen, skipped)


def sample_cosines(
    backbone: Backbone, images: ImageSet, chosen: Mapping[str, Indices]
) -> Float[Tensor, "domains domains"]:
    """Mean cosines of the samples' gradients by pairs of domains, in evaluation mode.

    The gradients are those of each sample's cross-entropy by all trained parameters. Entry (d, e)
    is the mean over the pairs of a sample of domain d and one of e; see `mean_cosines`.

    Raises `NonFiniteError` as `gradient_gram` does.
    """
    x, y = labelled_images(backbone, images, np.concatenate(list(chosen.values())))
    with evaluating(backbone.model):
        gram = gradient_gram(backbone.model, CrossEntropyLoss(reduction="none"), x, y)
    cosines = gram.cosines()
    cosines[gram.total.diagonal() <= 0] = torch.nan  # a zero gradient has no direction
    sizes = [len(indices) for indices in chosen.values()]
    membership = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return mean_cosines(cosines, membership)


def mean_cosines(
    cosines: Float[Tensor, "samples samples"], domain: Int64[Tensor, " samples"]
) -> Float[Tensor, "domains domains"]:
    """The mean of cos_ij over i in domain d and j in domain e, a sample never with itself.

    cosines: of all pairs of samples; pairs where one is NaN do not count.
    domain: whose sample it is, numbered from 0.

    Returns a symmetric matrix, NaN where there is no pair.

    >>> cosines = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 1.0]])
    >>> mean_cosines(cosines, torch.tensor([0, 0, 1]))
    tensor([[0.5000, 0.1000],
            [0.1000,    nan]])
    """
    others = cosines.clone().fill_diagonal_(torch.nan)
    others = torch.where(others.isnan() | others.mT.isnan(), torch.nan, others)
    members = [domain == d for d in range(int(domain.max()) + 1)]
    rows = [torch.stack([others[d][:, e].nanmean() for e in members]) for d in members]
    means = torch.stack(rows)
    return (means + means.mT) / 2  # else the order of summation shows in the last bit


def within_and_across(means: Float[Tensor, "domains domains"]) -> tuple[float | None, float | None]:
    """The mean over the domains, and the mean over the pairs of different domains.

    Every domain counts the same, and every pair of domains. None where there is nothing to average.

    >>> within_and_across(torch.tensor([[0.5, 0.25], [0.25, 1.0]]))
    (0.75, 0.25)
    """
    rows, columns = torch.triu_indices(len(means), len(means), offset=1)
    found = [float(values.nanmean()) for values in (means.diagonal(), means[rows, columns])]
    within, across = (None if np.isnan(value) else value for value in found)
    return within, across


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

    configurations: of runs that differ in their seed alone.
    directory: receives a folder `seed-<seed>` a run and the study's `similarity.json`.

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
    parts = []
    for each in configurations:
        folder = directory / f"seed-{each.seed}"
        if report is not None and each != first and not (folder / Record.file_name).exists():
            report(TrainingProgress("training", 0, each.iterations, note=f"seed {each.seed}"))
        parts.append(_measured_run(each, options, images, folder, report))
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
            "delete the folder, or choose another one (--out)"
        )
    begun = (directory / RunConfiguration.file_name).exists()
    if missing or (begun and not (directory / Record.file_name).exists()):
        pool = split_of(configuration, images, configuration.seed_of_split).train
        _check_feasible(pool, images, part)

        def measure(step: int, backbone: Backbone) -> None:
            part.runs[0].measurements.append(_measured(part, images, pool, step, backbone))
            part.save(directory)

        observer = observer_at(missing, directory / SimilarityStudy.file_name, measure)
        train(configuration, directory, report, opened=images, observe=observer)
    elif begun:  # is finished, and says so where its code has changed since
        train(configuration, directory, report, opened=images)
    return part


def _found(wanted: SimilarityStudy, directory: Path) -> SimilarityStudy:
    """The measurements in `directory`, which must be of the same run and options."""
    found = SimilarityStudy.load(directory)
    checkpoint.check_same(wanted.configuration, found.configuration, directory, "data")
    fields = SimilarityOptions.model_fields
    check_same(wanted.options, found.options, fields, directory, "measurements")
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
