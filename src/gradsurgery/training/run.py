"""One run from a configuration to its record."""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from gradsurgery.algorithms import build_method, method_provenance
from gradsurgery.atomic import claimed
from gradsurgery.backbones import Backbone, build_backbone, check_batch_size
from gradsurgery.backbones.networks import find_network
from gradsurgery.data import ImageSet, Source, digest_of, open_source, prepare, unknown_domain
from gradsurgery.data.splits import check_split
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.deployment import domains_known
from gradsurgery.documents.record import Record
from gradsurgery.doors import changed_code
from gradsurgery.errors import ArgumentError, GradsurgeryError
from gradsurgery.training.averaging import average_values, method_settings
from gradsurgery.training.checkpoint import (
    Checkpoint,
    changed_data,
    check_same,
    continued,
    is_longer,
    remove_checkpoint,
    remove_leftover,
    restore_learner,
)
from gradsurgery.training.device import computing_with, device_of, reset_peak_memory
from gradsurgery.training.frozen_features import features_kept
from gradsurgery.training.images_used import (
    Gaps,
    ImagesUsed,
    check_gaps,
    check_told_split,
    check_weights,
    gaps_of,
    split_now,
)
from gradsurgery.training.learner import build_learner, build_optimizer
from gradsurgery.training.loop import Observer, run_steps
from gradsurgery.training.outcome import Run, conclude
from gradsurgery.training.progress import ProgressCallback, TrainingProgress
from gradsurgery.training.recipe import check_recipe, frozen_names


def train(
    configuration: RunConfiguration,
    directory: Path | str,
    progress: ProgressCallback | None = None,
    cache: Path | None = None,
    *,
    opened: Source | ImageSet | None = None,
    observe: Observer | None = None,
) -> Record:
    """Train on every domain but the target, if any, and test the best and the last model on all.

    The same call again continues a run that was interrupted, to the same record bit for bit on a
    processor, and returns the record of one that is finished. With more iterations it gives such a
    run more steps, to the record of a run that had them from the start.

    Args:
        configuration: the run's options.
        directory: receives `record.json`, `model.safetensors` (the best model), `split.json` and
            `configuration.json`.
        progress: called after every step.
        cache: folder of the decoded images; None is the default one.
        opened: the data set where the caller has opened or prepared it already.
        observe: called as `observe(step, backbone)` before the first step (with 0) and after every
            step, before anything is written of it; a run that is continued shows the step it goes
            on from once more. What it does to random numbers and to the model's mode is undone.

    Raises `ArgumentError`, `DataError` or `WeightsError` before any work where an option or the
    data is unusable; `OutputError` where the folder is not writable or in use; `CheckpointError`
    where it cannot be continued from; `NonFiniteError` where training diverges.
    """
    if not isinstance(configuration, RunConfiguration):
        raise ArgumentError(
            f"train takes a RunConfiguration, found {configuration!r:.80}; give e.g. "
            'gradsurgery.RunConfiguration(data="photos", target="shop_c")'
        )
    report: ProgressCallback = progress or (lambda _: None)
    directory = Path(directory)
    source = opened or open_source(configuration.data, **configuration.reading)
    if not _is_there(configuration, directory):  # what trained once is not checked again
        check_run(configuration, source.name, source.domains, gaps_of(source))
    if (record := _finished(configuration, directory)) is not None:
        steps = record.result.last.step
        for line in _told_of_changes(configuration, record, source, cache):
            report(TrainingProgress("training", steps, steps, note=line))
        return record
    device = device_of(configuration)
    with claimed(directory):
        if (record := _finished(configuration, directory)) is not None:
            return record
        record = _record(
            configuration,
            source,
            directory,
            device=device,
            report=report,
            cache=cache,
            observe=observe,
        )
        record.save(directory)
        if not configuration.keep_checkpoint:
            remove_checkpoint(directory)
        return record


def check_run(
    configuration: RunConfiguration, name: str, domains: tuple[str, ...], gaps: Gaps = ()
) -> None:
    """Raise `ArgumentError` where the target, the method or its steps do not fit the data set."""
    target, method = configuration.held_out(domains), configuration.method
    if target is not None and target not in domains:
        quoted = "; in a list of targets a name with a comma is quoted: '\"a, b\",c'"
        raise ArgumentError(
            unknown_domain(name, target, domains)
            + (quoted if any("," in domain for domain in domains) else "")
        )
    check_split(configuration)
    average_values(configuration)  # raises where a hyperparameter is wrong, as the next does
    algorithm = build_method(
        method,
        generator=torch.Generator(),
        make_optimizer=partial(build_optimizer, configuration=configuration),
        settings=method_settings(configuration.settings),
        batch_norm=configuration.batch_norm,
    )
    algorithm.smooth_labels(configuration.label_smoothing)
    check_recipe(configuration, algorithm)
    check_weights(configuration, algorithm)
    check_gaps(algorithm, configuration, domains, gaps)
    if reason := algorithm.idle_reason(configuration.iterations):
        raise ArgumentError(reason)
    objective = getattr(algorithm, "objective", None)
    if configuration.compile and getattr(objective, "reads_features", False):
        raise ArgumentError(
            f"{method} looks at what goes into the network's last layer, which a compiled network "
            "does not show; leave --compile out"
        )
    algorithm.state_dict()  # raises where a state cannot be saved
    if unknown := [domain for domain in configuration.without if domain not in domains]:
        raise ArgumentError(unknown_domain(name, unknown[0], domains, " to leave out"))
    sources = len(configuration.sources(domains))
    least = algorithm.minimum_domains
    if sources < least:
        beside = "" if target is None else f" beside the target {target!r}"
        cure = "use a data set with more domains"
        if configuration.without:
            beside += f" without {', '.join(configuration.without)}"
            cure = "leave fewer of them out"
        if sources:
            cure += ", or use the method deep-all, which takes one"
        raise ArgumentError(
            f"{name} leaves {sources} source domain(s){beside} and {method} needs {least}; {cure}"
        )


def network_of(configuration: RunConfiguration, source: Source | ImageSet) -> Backbone:
    """The run's network with its initial weights; raises as `build_backbone` does."""
    return build_backbone(
        configuration.backbone,
        classes=len(source.classes),
        weights=configuration.weights,
        seed=configuration.seed,
        image_size=configuration.image_size,
    )


def check_network(
    configuration: RunConfiguration, backbone: Backbone, domains: tuple[str, ...]
) -> None:
    """Raise `ArgumentError` where options of the run do not fit its network."""
    check_batch_size(
        backbone.model,
        configuration.batch_norm,
        batch_size=configuration.batch_size,
        domains=len(configuration.sources(domains)),
        image_size=configuration.image_size,
    )
    frozen_names(backbone, configuration.freeze)  # raises where a name stands for nothing


def _is_there(configuration: RunConfiguration, directory: Path) -> bool:
    """Whether `directory` has the record of a run with just these options."""
    if not (directory / Record.file_name).exists():
        return False
    return not configuration.differences(Record.load(directory).configuration, "data")


def _finished(configuration: RunConfiguration, directory: Path) -> Record | None:
    """The record of the run in `directory`; None where there is none, or one of fewer steps."""
    if not (directory / Record.file_name).exists():
        return None
    record = Record.load(directory)
    if is_longer(configuration, record.configuration):
        return None
    if (name := configuration.backbone) != record.configuration.backbone:
        find_network(name, len(record.data.classes), configuration.image_size)  # is it there?
    check_same(configuration, record.configuration, directory, "data")
    remove_leftover(record.configuration, directory)
    return record


def changed_since(configuration: RunConfiguration, record: Record) -> list[str]:
    """The code from elsewhere that a finished run has used and that is another now."""
    if record.objects:  # what is gone or broken is not needed any more
        with suppress(ArgumentError):
            method_provenance(configuration.method)
        with suppress(ArgumentError):
            find_network(configuration.backbone, len(record.data.classes), configuration.image_size)
    return changed_code(record.objects)


def _told_of_changes(
    configuration: RunConfiguration, record: Record, source: Source | ImageSet, cache: Path | None
) -> Iterator[str]:
    """Lines on what is not as it was when the run was finished: code from elsewhere, and images."""
    again = "name another folder (--out), or delete this one"
    if code := changed_since(configuration, record):
        yield (
            f"the code of {', '.join(code)} has changed since this run was finished; to run it as "
            f"it is now, {again}"
        )
    try:
        if isinstance(source, ImageSet):
            digest = source.digest
        else:
            digest = digest_of(source, configuration.image_size, cache)
        now = digest, split_now(configuration, record, source, digest)
    except GradsurgeryError as error:
        yield f"whether {source.name} is as it was when this run was finished is not known: {error}"
        return
    if data := changed_data(source.name, (record.data.digest, record.split.digest), now):
        yield f"{data} since this run was finished; to train on {source.name} as it is now, {again}"


def prepare_images(
    source: Source | ImageSet,
    configuration: RunConfiguration,
    cache: Path | None,
    report: ProgressCallback,
) -> ImageSet:
    """The data set decoded for the run, unless it is already; `report` hears how far it is."""
    if isinstance(source, ImageSet):
        return source
    check_told_split(configuration, source)
    return prepare(
        source,
        size=configuration.image_size,
        cache=cache,
        skip_bad=configuration.skip_bad,
        progress=lambda done, total: report(TrainingProgress("images", done, total)),
    )


def _record(
    configuration: RunConfiguration,
    source: Source | ImageSet,
    directory: Path,
    *,
    device: torch.device,
    report: ProgressCallback,
    cache: Path | None,
    observe: Observer | None,
) -> Record:
    """Build what the run needs, take the steps that are left, and test."""
    c = configuration
    backbone = network_of(c, source)
    check_network(c, backbone, source.domains)
    checkpoint = continued(c, directory, report)
    threads = c.threads
    if checkpoint is not None:
        threads = threads or checkpoint.configuration.threads
    with computing_with(threads, device, c.precision) as threads:
        c = c.model_copy(update={"device": str(device), "threads": threads})
        images = prepare_images(source, c, cache, report)
        learner = build_learner(c, backbone, device)
        reset_peak_memory(device)
        used = ImagesUsed.of(c, images)
        used.prepare(learner.algorithm, c, backbone, device)
        target = c.held_out(images.domains)
        known = domains_known(backbone.weights_metadata, images.name, images.domains)
        for line in [*_told_of_weights(c, target, known), *used.notes(target, c.split)]:
            report(TrainingProgress("images", len(images.label), len(images.label), note=line))
        objects = _foreign_objects(c, images, backbone)
        if checkpoint is None:
            c.save(directory)
            used.split.save(directory, images.hashes)
            checkpoint = Checkpoint(
                configuration=c,
                data_digest=images.digest,
                split_digest=used.split.digest,
                objects=objects,
            )
        else:
            restore_learner(learner, checkpoint, used, directory)
            _note_changes(objects, checkpoint, report)
            if c.iterations != checkpoint.configuration.iterations:
                c.save(directory)
            checkpoint.configuration = c  # which may be worked on elsewhere by now
            report(TrainingProgress("resuming", checkpoint.step, c.iterations))
        batches = used.batches(c)
        unused = len(used.split.unused)
        loader = learner.loader(images)
        with features_kept(learner, loader, c, batches.indices_at, report, unused=unused) as loader:
            run = Run(learner, checkpoint, used, loader, directory, report)
            return conclude(run, cuda_graph=run_steps(run, batches, observe))


def _told_of_weights(
    configuration: RunConfiguration, target: str | None, known: list[str]
) -> list[str]:
    """A line where the initial weights were trained on the domain that is held out."""
    if target not in known:
        return []
    return [
        f"the weights {configuration.weights} were trained on {target}, by what their file says: "
        "THE ACCURACY SAYS NOTHING OF A DOMAIN THAT WAS NEVER SEEN; give other --weights"
    ]


def _foreign_objects(
    configuration: RunConfiguration, images: ImageSet, backbone: Backbone
) -> list[dict[str, str | None]]:
    """Where what a run takes from outside of this software comes from."""
    beside = (images.provenance, backbone.provenance)
    return method_provenance(configuration.method) + [each for each in beside if each is not None]


def _note_changes(
    objects: list[dict[str, str | None]], checkpoint: Checkpoint, report: ProgressCallback
) -> None:
    """Add to the checkpoint code that is another than the steps so far ran, and say so."""
    changed = [each for each in objects if each not in checkpoint.objects]
    if changed and checkpoint.objects:
        names = ", ".join(str(each["object"]) for each in changed)
        line = f"the code of {names} has changed since the run began: its record names both"
        report(TrainingProgress("training", checkpoint.step, 0, note=line))
    checkpoint.objects.extend(changed)
