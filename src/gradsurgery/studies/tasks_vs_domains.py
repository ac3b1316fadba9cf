"""Tasks against domains: the same network, images and steps, and other groups of losses."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from math import fsum
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gradsurgery.atomic import claimed
from gradsurgery.backbones import Backbone, build_backbone, set_training_mode
from gradsurgery.data import ImageSet, Split, draw_split, unknown_domain
from gradsurgery.documents.tasks_vs_domains import (
    DIALS,
    GROUPINGS,
    TURNED,
    Grouping,
    Measured,
    TasksOptions,
    TasksRun,
    TasksStudy,
)
from gradsurgery.engine import backward
from gradsurgery.errors import ArgumentError
from gradsurgery.rules import build_rule
from gradsurgery.seeds import named_generator
from gradsurgery.studies.groupings import (
    Groups,
    all_logits,
    find_tasks,
    parameters_in_order,
    spread,
)
from gradsurgery.studies.measuring import Positions, check_same
from gradsurgery.studies.removals import Surgery, measure
from gradsurgery.training.device import resolve_device


class StudyProgress(NamedTuple):
    """How far a study is: runs and steps that are done, of how many; the run that just ended."""

    runs: int
    all_runs: int
    steps: int
    all_steps: int
    ended: TasksRun | None = None


class Cell(NamedTuple):
    """A run that is to be made."""

    grouping: Grouping
    rule: str
    dial: str | None
    value: float | None
    seed: int


def study_tasks(
    options: TasksOptions,
    images: ImageSet,
    directory: Path,
    *,
    seeds: Sequence[int],
    dials: dict[str, list[float]] | None = None,
    dial_seeds: Sequence[int] = (),
    device: str = "auto",
    report: Callable[[StudyProgress], object] = lambda progress: None,
) -> TasksStudy:
    """Train by every rule in every grouping, and measure what the rules do to the gradients.

    Every run is in `tasks-vs-domains.json` as soon as it is finished: the same call again goes on
    where it was interrupted, to the same file. Runs of one seed begin with the same weights and see
    the same images.

    seeds: of the runs with no dial turned.
    dials: values of some of `DIALS`, one turned at a time, in runs of `dial_seeds`.
    report: called after every step.

    Raises `ArgumentError` where data, tasks or rules do not fit, or the directory holds a study of
    other options; `NonFiniteError` where training diverges.
    """
    cells = list(planned(options, seeds, dials := dials or {}, dial_seeds))
    sources = spread_sources(images, options)
    _check(options, images, dials)
    study = TasksStudy(
        options=options,
        seeds=list(seeds),
        dials=dials,
        dial_seeds=list(dial_seeds),
        name=images.name,
        digest=images.digest,
        domains=sources,
        tasks=[task.name for task in find_tasks(images, options.tasks, sources)],
        runs=[],
    )
    with claimed(directory):
        for leftover in directory.glob(f".{TasksStudy.file_name}.*.tmp"):  # of a killed process
            leftover.unlink(missing_ok=True)
        if (directory / TasksStudy.file_name).exists():
            study = _continued(study, directory)
        done = {run.cell for run in study.runs}
        missing = [cell for cell in cells if tuple(cell) not in done]
        split = draw_split(images)
        all_steps = len(missing) * options.iterations
        for made, cell in enumerate(missing):
            before = StudyProgress(
                len(cells) - len(missing) + made, len(cells), made * options.iterations, all_steps
            )

            def stepped(step: int, before: StudyProgress = before) -> None:
                report(before._replace(steps=before.steps + step))

            run = run_cell(cell, options, images, split, device=device, stepped=stepped)
            study.runs.append(run)
            study.runs.sort(key=_order)
            study.save(directory)
            steps = before.steps + options.iterations
            report(before._replace(runs=before.runs + 1, steps=steps, ended=run))
    return study


def _check(options: TasksOptions, images: ImageSet, dials: dict[str, list[float]]) -> None:
    """Raise `ArgumentError` for a rule or a dial's value that there is not."""
    for rule in options.rules:
        build_rule(rule, {})
    for dial, values in dials.items():
        for value in values:
            spread_sources(images, options.turned(dial, value))


def _order(run: TasksRun) -> tuple[int, float, int, int, str]:
    """The place of a run in the file, whenever it was made."""
    dial = -1 if run.dial is None else DIALS.index(run.dial)
    return dial, run.value or 0.0, run.seed, GROUPINGS.index(run.grouping), run.rule


def planned(
    options: TasksOptions,
    seeds: Sequence[int],
    dials: dict[str, list[float]],
    dial_seeds: Sequence[int],
) -> Iterator[Cell]:
    """The runs, seed by seed: what is there early is of all groupings and rules."""
    for seed, grouping, rule in itertools.product(seeds, options.groupings, options.rules):
        yield Cell(grouping, rule, None, None, seed)
    turns = [(dial, float(value)) for dial, values in dials.items() for value in values]
    turned = [grouping for grouping in options.groupings if grouping in TURNED]
    for seed, turn, grouping, rule in itertools.product(dial_seeds, turns, turned, options.rules):
        yield Cell(grouping, rule, *turn, seed)


def spread_sources(images: ImageSet, options: TasksOptions) -> list[str]:
    """As many source domains as there are groups, spread evenly over those that there are."""
    if options.target not in images.domains:
        raise ArgumentError(unknown_domain(images.name, options.target, images.domains))
    sources = [domain for domain in images.domains if domain != options.target]
    if options.groups > len(sources):
        raise ArgumentError(
            f"{images.name} leaves {len(sources)} source domains beside {options.target!r}, and "
            f"{options.groups} groups need as many; take fewer groups"
        )
    if options.groups > len(options.tasks):
        raise ArgumentError(
            f"{options.groups} groups need as many tasks, found {len(options.tasks)}; name more"
        )
    places = np.linspace(0, len(sources) - 1, options.groups).round().astype(int)
    return [sources[place] for place in places]


def run_cell(
    cell: Cell,
    options: TasksOptions,
    images: ImageSet,
    split: Split,
    *,
    device: str = "auto",
    stepped: Callable[[int], None] = lambda step: None,
) -> TasksRun:
    """Train one run, and measure it; `stepped` is called with the steps done."""
    turned = options
    if cell.dial is not None and cell.value is not None:
        turned = options.turned(cell.dial, cell.value)
    sources = spread_sources(images, turned)
    tasks = find_tasks(images, turned.tasks, sources)
    outputs = sum(task.size for task in tasks)
    backbone = build_backbone(
        turned.backbone,
        classes=outputs,
        weights=turned.weights,
        seed=cell.seed,
        image_size=turned.image_size,
    )
    backbone.model.to(resolve_device(device))
    groups = Groups(
        cell.grouping, images, split, turned, sources=sources, tasks=tasks, seed=cell.seed
    )
    named, own = parameters_in_order(backbone.model, outputs)
    surgery = Surgery(
        build_rule(cell.rule, {}, named_generator(cell.seed, "rule", cell.rule)),
        own=0 if groups.one_task else own,
        noise=turned.noise,
        generator=named_generator(cell.seed, "noise"),
    )
    optimizer = torch.optim.Adam([p for _, p in named], lr=turned.learning_rate)
    losses: list[float] = []
    measured: list[Measured] = []
    for step in range(turned.iterations + 1):
        if step in turned.measured_steps:
            backbone.model.eval()
            losses.append(_rounded(training_loss(backbone, groups, turned.evaluated)))
            if cell.rule == turned.rules[0]:
                by_layer = cell.dial is None
                measured.append(
                    measure(backbone, groups, named, own, turned, step=step, by_layer=by_layer)
                )
        if step == turned.iterations:
            break
        set_training_mode(backbone.model, "frozen")
        optimizer.zero_grad()
        shown = groups.losses(backbone, groups.at(step))
        backward(list(shown) if cell.grouping == "tasks" else shown, named, surgery)
        optimizer.step()
        stepped(step + 1)
    held_out = [spread(split.test[domain], turned.evaluated) for domain in sources]
    target = np.flatnonzero(images.domain == images.domains.index(turned.target))
    return TasksRun(
        **cell._asdict(),
        losses=losses,
        held_out=accuracies(backbone, groups, np.concatenate(held_out)),
        unseen=accuracies(backbone, groups, spread(target, turned.evaluated)),
        measured=measured,
    )


def training_loss(backbone: Backbone, groups: Groups, most: int) -> float:
    """The mean of the groups' losses on up to `most` training images a domain."""
    values = []
    logits: dict[bytes, Float[Tensor, "images outputs"]] = {}
    for group in groups.whole(most):
        key = group.positions.tobytes()
        if key not in logits:
            logits[key] = all_logits(backbone, groups.images, group.positions)
        values.append(float(groups.loss(logits[key], group)))
    return fsum(values) / len(values)


def accuracies(backbone: Backbone, groups: Groups, positions: Positions) -> dict[str, float]:
    """The accuracy of every task that is trained, where the images have a label of it."""
    backbone.model.eval()
    logits = all_logits(backbone, groups.images, positions)
    found = {}
    for number in range(1 if groups.one_task else groups.count):
        task = groups.tasks[number]
        labels = task.labels[positions]
        if (labels >= 0).all():
            right = groups.logits_of(number, logits).argmax(1).numpy() == labels
            found[task.name] = _rounded(float(right.mean()))
    return found


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _continued(wanted: TasksStudy, directory: Path) -> TasksStudy:
    """The study in `directory`, with what `wanted` adds to its groupings, seeds and dials.

    All other options must be the same.
    """
    found = TasksStudy.load(directory)
    either = {*wanted.options.groupings, *found.options.groupings}
    groupings = [grouping for grouping in GROUPINGS if grouping in either]
    both = wanted.model_copy(
        update={
            "options": wanted.options.model_copy(update={"groupings": groupings}),
            "seeds": sorted({*wanted.seeds, *found.seeds}),
            "dial_seeds": sorted({*wanted.dial_seeds, *found.dial_seeds}),
            "dials": {
                dial: sorted({*wanted.dials.get(dial, []), *found.dials.get(dial, [])})
                for dial in DIALS
                if dial in wanted.dials or dial in found.dials
            },
            "runs": found.runs,
        }
    )
    there = found.options.model_copy(update={"groupings": groupings})
    check_same(both.options, there, TasksOptions.model_fields, directory, "a study")
    if (found.name, found.domains) != (both.name, both.domains):
        raise ArgumentError(
            f"{directory} holds a study of {found.name} with the domains "
            f"{', '.join(found.domains)}; choose another output folder (--out), or delete this one"
        )
    if found.runs and found.digest != both.digest:
        raise ArgumentError(
            f"{directory} holds a study of other images than {both.name} has now; choose another "
            "output folder (--out), or delete this one"
        )
    return both
