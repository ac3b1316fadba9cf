"""Commands on a trained model and images: `gradsurgery predict` and `evaluate`."""

import hashlib
import itertools
import json
import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from gradsurgery.atomic import check_folder, expanded
from gradsurgery.backbones.networks import library_has
from gradsurgery.backbones.weights import file_digest
from gradsurgery.cli import options as opt
from gradsurgery.cli.data import open_data
from gradsurgery.cli.finished_runs import print_sentences
from gradsurgery.cli.live import continuable, images_displayed, note
from gradsurgery.data import SkippedImage, Source
from gradsurgery.data.folder import CLASS_AND_NAME, ELSEWHERE, LayoutSource
from gradsurgery.data.source import as_seen, spelled_alike
from gradsurgery.deployment import Predictions, TrainedModel
from gradsurgery.deployment.evaluation import evaluate_model
from gradsurgery.deployment.pictures import check_named, listed_pictures
from gradsurgery.deployment.predictions_file import check_predictions_file, predictions_file
from gradsurgery.deployment.trained_model import built_model, opened_file
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.data_options import left_out_classes, listed_names
from gradsurgery.documents.deployment import EvaluatedPart, EvaluationFile
from gradsurgery.documents.document import folder_name
from gradsurgery.documents.record import Record
from gradsurgery.errors import ArgumentError, DataError
from gradsurgery.report.evaluation_text import evaluation_tables
from gradsurgery.report.rendering import OnTerminal
from gradsurgery.report.report import write_evaluation
from gradsurgery.report.section import counted, value_text
from gradsurgery.training import device as devices

_NAMED = 20  # pictures that could not be decoded, and other files


def predict(
    model: Annotated[str, opt.MODEL],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGES...", help="Pictures, and folders of any depth.")
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A .csv or .parquet file; one that is there is gone on with. Default: print."
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Classes to give for each picture.")] = 1,
    backbone: opt.OwnBackboneOption = None,
    device: opt.DeviceOption = "auto",
    batch_size: opt.PictureBatchOption = 128,
    workers: opt.WorkersOption = None,
) -> None:
    """Classify pictures as the model was trained to, those of a folder as they come.

    Pictures that cannot be decoded are named, and the others classified; the exit code is 0 where
    any was. With --out the same command goes on with a file that an interruption left behind.
    """
    check_named(images)
    if out is not None:
        check_predictions_file(out)
    trained = loaded(model, backbone, device)
    top = min(top, len(trained.classes))
    digest = file_digest(trained.file) if out else ""
    opened = nullcontext() if out is None else predictions_file(out, top, digest)
    pictures, left_out = listed_pictures(images)
    skipped: list[SkippedImage] = []
    before = failed = count = 0
    shown = out is not None or not sys.stdout.isatty()
    with continuable(), opened as file, images_displayed("", None, shown=shown) as tell:
        if file is not None and (before := len(file.done)):
            pictures = (picture for picture in pictures if picture.name not in file.done)
            failed = file.failed
        for part in trained.stream(pictures, batch_size=batch_size, workers=workers):
            if file is not None:
                file.add(part)
            else:
                _print_rows(part, top)
            count += len(part)
            skipped += part.skipped
            tell(count + len(skipped))
    if before:
        row = f"{counted(before, 'picture')} had {'its' if before == 1 else 'their'} row before"
        again = ", {} with an error; delete such a row to have its picture tried again"
        print(row + (again.format(failed) if failed else ""), file=sys.stderr)
    name_files(skipped, left_out)
    if out is not None:
        print(f"{counted(count, 'prediction')}: {out}")
    if skipped and not count and not before:
        raise DataError(f"none of {counted(len(skipped), 'picture')} can be decoded")


def loaded(place: str, backbone: str | None, device: str) -> TrainedModel:
    """The model, once what there is to know of it is said."""
    (trained,) = _loaded([place], backbone, device)
    return trained


def _loaded(named: list[str], backbone: str | None, device: str) -> list[TrainedModel]:
    """The models; one network of one's own is for those that need it, two are one for each."""
    where = devices.resolve_device(device)
    devices.keep_freed_memory()  # before torch allocates anything
    files = [opened_file(place) for place in named]
    names = [file.description.backbone for file in files]
    own = [not library_has(name) for name in names]
    given = backbone.split(",") if backbone else []
    several = len({name.rpartition(":")[2] for name in itertools.compress(names, own)}) > 1
    if len(given) > len(files) or (len(given) == 1 and several):
        raise ArgumentError(
            f"--backbone names {counted(len(given), 'network')} for "
            f"{counted(len(files), 'model')}, of {' and '.join(names)}; name one for each, "
            "separated by a comma"
        )
    handed = given if len(given) > 1 else [backbone] * len(files)
    models = [
        built_model(file, where, network if needs or not any(own) else None)
        for file, network, needs in zip(files, handed, own, strict=True)
    ]
    for text in itertools.chain.from_iterable(trained.notes for trained in models):
        note(text)
    return models


def _print_rows(predictions: Predictions, top: int) -> None:
    for name, best in zip(predictions.names, predictions.top(top), strict=True):
        said = "  ".join(f"{label} {probability:.1%}" for label, probability in best)
        sys.stdout.write(f"{name}  {said}\n")


def name_files(undecoded: list[SkippedImage], others: list[SkippedImage]) -> None:
    """Say which files were left out, and why."""
    kinds = ("cannot be decoded", undecoded), ("is something else than a picture", others)
    for what, files in kinds:
        if files:
            print(f"{counted(len(files), 'file', what)}:", file=sys.stderr)
        for file in files[:_NAMED]:
            print(f"  {file.identity}: {file.reason}", file=sys.stderr)
        if len(files) > _NAMED:
            print(f"  and {len(files) - _NAMED:,} more", file=sys.stderr)


@opt.takes_options_of(RunConfiguration, only=("layout", "columns", "skip_bad"))
def evaluate(
    model: Annotated[str, opt.MODEL],
    data: Annotated[str, opt.DATA],
    *,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Another model, as the one in use: which of the two is better, on the same "
            "images, and in which domains.",
        ),
    ] = None,
    domains: Annotated[
        str | None, typer.Option(help="Of the data, separated by commas. Default: all.")
    ] = None,
    part: Annotated[EvaluatedPart, typer.Option(help="Of the split of the model's run.")] = "all",
    as_domain: Annotated[
        str | None,
        typer.Option(
            help="DATA is a folder class/image, or as a --layout without {domain}, of a domain "
            "called so. Default: as the folder is."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder. Default: one in evaluation/<data> of these options."),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="package.module:function of your own network; of two, with a comma."),
    ] = None,
    device: opt.DeviceOption = "auto",
    batch_size: opt.PictureBatchOption = 128,
    workers: opt.WorkersOption = None,
    options: dict[str, Any],
) -> None:
    """Say how right the model is on a data set: by domain, by class, and how far to trust it.

    Images of classes that it does not know are counted apart. Two models are compared on images
    that neither is known to have been trained on. Tables and figures are written into a folder.
    """
    if out is not None:
        check_folder(out)
    named = [model] if against is None else [model, against]
    trained, *others = _loaded(named, backbone, device)
    skip_bad = options.pop("skip_bad", False)
    if as_domain is None:
        options |= _as_its_run(trained, data, options, part)
    source = _opened(data, options, as_domain)
    _note_data(trained, source)
    within = Path("evaluation", folder_name(source.name))
    check_folder(out or within)
    with continuable(), images_displayed("evaluating", len(source.listing.identities)) as tell:
        evaluation = evaluate_model(
            trained,
            source,
            against=others[0] if others else None,
            domains=None if domains is None else listed_names(domains),
            part=part,
            skip_bad=skip_bad,
            batch_size=batch_size,
            workers=workers,
            progress=tell,
        )
    said = (options.get(name, "") for name in ("layout", "columns"))
    reads = [str(Path(data).absolute()), *said, as_domain, skip_bad]
    _tell(evaluation, source, out or within / _default_name(evaluation, trained, domains, reads))


def _tell(evaluation: EvaluationFile, source: Source, directory: Path) -> None:
    """Write and print what came out."""
    print_sentences(write_evaluation(evaluation, directory))
    print()
    Console().print(OnTerminal(evaluation_tables(evaluation)))
    empty = left_out_classes((each.identity, each.reason) for each in source.left_out)
    files = len(source.left_out) - len(empty)
    said = [counted(files, "file", "is something else than an image")] if files else []
    if said := [*said, *(f"class {label} ({why})" for label, why in empty.items())]:
        print(f"left out of {source.name}: {'; '.join(said)}", file=sys.stderr)
    print(f"tables and figures: {directory}")


def _as_its_run(
    trained: TrainedModel, data: str, options: dict[str, Any], part: EvaluatedPart
) -> dict[str, Any]:
    """How the model's run read its data, where DATA is that and nothing else is said."""
    record = _record_of(trained)
    if any(options.values()) or record is None:
        return {}
    run = record.configuration
    read = {name: value for name in ("layout", "columns") if (value := getattr(run, name))}
    here, there = (expanded(place).resolve() for place in (data, run.data))
    if not read or here.name != there.name:
        return {}
    said = " and ".join(f"{name} {value_text(value)}" for name, value in read.items())
    if part == "all" and data != run.data and here != there:  # others have files of that name too
        note(f"the model's run read {run.data} with {said}; {data} is not")
        return {}
    note(f"{data} is read as the model's run read it, with {said}")
    return read


def _record_of(trained: TrainedModel) -> Record | None:
    """That of the model's run, None where there is none to read: the model does not need it."""
    try:
        return None if trained.run_folder is None else Record.load(trained.run_folder)
    except DataError:
        return None


def _note_data(trained: TrainedModel, source: Source) -> None:
    """Say which classes differ in spelling alone, and that images are taken for independent.

    The latter where those of the model's run were not.
    """
    known = dict.fromkeys(map(as_seen, [*trained.classes, *source.classes]))
    for sentence in spelled_alike([*known]):
        note(f"classes {sentence}")
    record = _record_of(trained)
    tests = {} if record is None or source.groups is not None else record.result.best.tests
    if any(tally.in_groups for tally in tests.values()):
        note(
            f"images of the model's run belong together in groups; those of {source.name} are "
            "taken for independent: where they are not, say so with --columns group=COLUMN or "
            "{group} in --layout, or intervals are too narrow"
        )


def _default_name(
    evaluation: EvaluationFile, trained: TrainedModel, domains: str | None, reads: Sequence[object]
) -> str:
    """Says of what model and images it is; other options than these have another folder."""
    about, part = trained.about, evaluation.part
    said = [about.method, about.target or "", f"seed-{about.seed}", part if part != "all" else ""]
    chosen = sorted(evaluation.domains) if domains is not None else []
    options = json.dumps([evaluation.model_digest, part, chosen, *reads])
    if evaluation.against is not None:
        options += evaluation.against.model_digest
        said.append("against-another")
    digest = hashlib.sha256(options.encode()).hexdigest()[:8]
    name = "-".join([*filter(None, said), *chosen])
    return f"{folder_name(name)}-{digest}"


def _opened(data: str, options: dict[str, Any], as_domain: str | None) -> Source:
    """The data set: of one domain where --as-domain, the layout, or what lies there says so."""
    layout, root = options.get("layout", ""), expanded(data)
    of_one = bool(layout) and not re.search(r"\{domain\+?\}|\(\?P<domain>", layout)
    if as_domain is None and not (of_one and root.is_dir()):
        try:
            return open_data(data, {"classes": "all"} | options, fewest_domains=1)
        except DataError:
            source = None if any(options.values()) else _one_domain(root)
            if source is None:
                raise
        note(f"{data} is class/image, of one domain: {source.domains[0]}")
        return source
    if options.get("columns") or (layout and not of_one):
        raise ArgumentError(
            "--as-domain takes a folder class/image, or a layout without {domain}; leave out what "
            "says the domain, or --as-domain"
        )
    if not root.is_dir():
        raise ArgumentError(f"--as-domain takes a folder class/image, found {data!r}")
    source = LayoutSource(root, layout or CLASS_AND_NAME, as_domain or root.resolve().name)
    if as_domain is None:
        note(f"{data} is of one domain: {source.domains[0]}")
    return source


def _one_domain(folder: Path) -> Source | None:
    """The images of a folder class/image, of a domain called as it, or of the one folder in it.

    None where images lie elsewhere too.
    """
    within = sorted(folder.iterdir()) if folder.is_dir() else []
    for root in (folder, *(within if len(within) == 1 else ())):
        try:
            source = LayoutSource(root, CLASS_AND_NAME, root.resolve().name)
        except DataError:
            continue
        if all(each.reason != ELSEWHERE for each in source.left_out):
            return source
    return None
