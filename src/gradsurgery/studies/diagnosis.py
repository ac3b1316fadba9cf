"""Diagnose a network as it is, a finished run, or a network while it trains."""

from pathlib import Path

from gradsurgery.backbones import Backbone, build_backbone
from gradsurgery.data import ImageSet, split_of, unknown_domain
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.record import ConflictLog, Record
from gradsurgery.documents.studies import (
    Diagnosis,
    DiagnosisOptions,
    LoggedConflict,
    Numbers,
    Snapshot,
)
from gradsurgery.errors import ArgumentError, DataError
from gradsurgery.gradients.gradient_gram import block_of
from gradsurgery.studies.measuring import check_every_step, check_same, mean_of_known, observer_at
from gradsurgery.studies.snapshot import diagnose_step
from gradsurgery.training import train
from gradsurgery.training.device import resolve_device
from gradsurgery.training.outcome import MODEL_FILE
from gradsurgery.training.progress import ProgressCallback

RUN_FOLDER = "run"


def diagnose_weights(
    configuration: RunConfiguration,
    options: DiagnosisOptions,
    images: ImageSet,
    *,
    target: str | None = None,
) -> Diagnosis:
    """The conflict between the domains for the backbone and weights as they are.

    configuration: whose `backbone`, `weights`, `seed` (of a new last layer), `device` and split
        count.
    target: the domain held out; None measures all.

    Raises `ArgumentError` or `WeightsError` as `build_backbone` does.
    """
    network = f"{configuration.backbone} with weights {_weights(configuration)}"
    diagnosis = _begun(configuration, options, images, target, network)
    backbone = _on_device(configuration, images, configuration.weights, configuration.device)
    split = split_of(configuration, images, configuration.seed_of_split)
    snapshot = diagnose_step(backbone, images, split, diagnosis.domains, options)
    return diagnosis.model_copy(update={"snapshots": [snapshot]})


def diagnose_run(
    directory: Path, options: DiagnosisOptions, images: ImageSet, device: str = "auto"
) -> Diagnosis:
    """The conflict between the source domains for the best model of a finished run.

    directory: of the run. What the run logged of its own (`log_conflict`, or else its curves) is
        in the diagnosis too.

    Raises `DataError` where there is no finished run, or it had other images.
    """
    record = Record.load(directory / Record.file_name)
    configuration = record.configuration
    split = split_of(configuration, images, record.split.seed)
    if (images.digest, split.digest) != (record.data.digest, record.split.digest):
        raise DataError(
            f"the run in {directory} was trained on other images than {images.name} has; give the "
            "data set that it was trained on"
        )
    network = f"{configuration.backbone} trained by {configuration.method}, best model"
    target = configuration.held_out(images.domains)
    diagnosis = _begun(configuration, options, images, target, network)
    backbone = _on_device(configuration, images, str(directory / MODEL_FILE), device)
    snapshot = diagnose_step(
        backbone, images, split, diagnosis.domains, options, step=record.result.best.step
    )
    logged = logged_conflict(record, snapshot)
    return diagnosis.model_copy(update={"snapshots": [snapshot], "logged": logged})


def diagnose_training(
    configuration: RunConfiguration,
    options: DiagnosisOptions,
    images: ImageSet,
    directory: Path,
    report: ProgressCallback | None = None,
) -> Diagnosis:
    """The conflict between the source domains at steps 0, K, 2K, … of a run, and at its end.

    The run is in `directory/run`, and `directory/diagnosis.json` grows with it: the same call again
    goes on where it was interrupted, to the same file.

    Raises `ArgumentError` where `directory` holds a diagnosis of other options, and what `train`
    raises.
    """
    check_every_step(configuration)
    total = configuration.iterations
    steps = sorted({*range(0, total + 1, options.every), total})
    network = (
        f"{configuration.backbone} with weights {_weights(configuration)}, trained by "
        f"{configuration.method}"
    )
    target = configuration.held_out(images.domains)
    diagnosis = _begun(configuration, options, images, target, network)
    if (directory / Diagnosis.file_name).exists():
        diagnosis = _continued(diagnosis, directory)
    missing = sorted(set(steps) - {snapshot.step for snapshot in diagnosis.snapshots})
    if missing and (directory / RUN_FOLDER / Record.file_name).exists():
        raise DataError(
            f"{directory} holds a finished run without its diagnosis at step {missing[0]}; delete "
            "the folder, or choose another one (--out)"
        )
    split = split_of(configuration, images, configuration.seed_of_split)

    def measure(step: int, backbone: Backbone) -> None:
        snapshot = diagnose_step(backbone, images, split, diagnosis.domains, options, step=step)
        diagnosis.snapshots.append(snapshot)
        diagnosis.save(directory)

    observer = observer_at(missing, directory / Diagnosis.file_name, measure)
    record = train(configuration, directory / RUN_FOLDER, report, opened=images, observe=observer)
    diagnosis.logged = logged_conflict(record, diagnosis.snapshots[-1])
    diagnosis.save(directory)
    return diagnosis


def _begun(
    configuration: RunConfiguration,
    options: DiagnosisOptions,
    images: ImageSet,
    target: str | None,
    network: str,
) -> Diagnosis:
    """A diagnosis without a snapshot yet."""
    return Diagnosis(
        data=images.name,
        domains=_domains(images, options, target, configuration),
        target=target,
        network=network,
        options=options,
        snapshots=[],
    )


def _on_device(
    configuration: RunConfiguration, images: ImageSet, weights: str, device: str
) -> Backbone:
    backbone = build_backbone(
        configuration.backbone,
        classes=len(images.classes),
        weights=weights,
        seed=configuration.seed,
        image_size=images.size,
    )
    backbone.model.to(resolve_device(device))
    return backbone


def _continued(wanted: Diagnosis, directory: Path) -> Diagnosis:
    """The diagnosis in `directory`, which must be of the same network and options."""
    found = Diagnosis.load(directory)
    check_same(wanted, found, ("data", "domains", "target", "network"), directory, "a diagnosis")
    options = DiagnosisOptions.model_fields
    check_same(wanted.options, found.options, options, directory, "a diagnosis")
    return found


def _domains(
    images: ImageSet, options: DiagnosisOptions, target: str | None, configuration: RunConfiguration
) -> list[str]:
    """The domains to measure: all, or all but the target and those left out with it."""
    held_out = [] if target is None else [target]
    held_out = [] if options.all_domains else [*held_out, *configuration.without]
    for name in held_out:
        if name not in images.domains:
            raise ArgumentError(unknown_domain(images.name, name, images.domains))
    domains = [domain for domain in images.domains if domain not in held_out]
    if len(domains) < 2:
        raise ArgumentError(
            f"{images.name} leaves {len(domains)} domain beside {', '.join(map(repr, held_out))}, "
            "and a conflict is between two; measure all domains"
        )
    return domains


def _weights(configuration: RunConfiguration) -> str:
    """The word "default" or "none", or the name of the file."""
    return Path(configuration.weights).name


def logged_conflict(record: Record, snapshot: Snapshot) -> LoggedConflict:
    """The run's log (`log_conflict`) in the groups of layers of `snapshot`, or else its curves."""
    log = record.conflict
    if log is None or not log.step:
        curves = record.curves
        return LoggedConflict(step=curves.step, agreeing=curves.agreeing, cosine=curves.cosine)
    return LoggedConflict(
        step=log.step,
        agreeing=log.agreeing,
        cosine=[None if matrix is None else _mean_pair(matrix) for matrix in log.cosines],
        groups=_by_group(log, [group.name for group in snapshot.groups]),
    )


def _by_group(log: ConflictLog, groups: list[str]) -> dict[str, Numbers]:
    """The layers' fractions, weighted by how many components they are of."""
    if all(layers is None for layers in log.layers):
        return {}
    members = {name: group for group in groups for name in group.split(", ")}
    fractions: dict[str, Numbers] = {}
    for group in groups:
        names = [n for n in log.sizes if members.get(n, members.get(block_of(n))) == group]
        if names:
            older = len(log.step) - len(log.moving)  # steps logged of all components
            moving = [log.sizes] * older + log.moving
            fractions[group] = [
                None if layers is None or counts is None else _weighted(layers, counts, names)
                for layers, counts in zip(log.layers, moving, strict=True)
            ]
    return fractions


def _weighted(
    fractions: dict[str, float], counts: dict[str, int], names: list[str]
) -> float | None:
    """The mean over the layers `names`; None where nothing of them moves."""
    total = sum(counts.get(name, 0) for name in names)
    if not total:
        return None
    return sum(fractions.get(name, 0.0) * counts.get(name, 0) for name in names) / total


def _mean_pair(matrix: list[Numbers]) -> float | None:
    """Mean over the pairs of different domains."""
    return mean_of_known(value for d, row in enumerate(matrix) for value in row[:d])
