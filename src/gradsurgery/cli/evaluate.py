"""`gradsurgery evaluate`: a trained model on images whose classes are known."""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gradsurgery.cli import options as opt
from gradsurgery.cli.data import ColumnsOption, LayoutOption, SkipBadOption, progress_bar, reading
from gradsurgery.cli.show import print_sentences
from gradsurgery.cli.train import continuable
from gradsurgery.data import Source, open_source
from gradsurgery.data.folder import OneDomainSource
from gradsurgery.deployment import TrainedModel, load_model
from gradsurgery.deployment.evaluation import evaluate_model
from gradsurgery.documents.configuration import folder_name
from gradsurgery.documents.deployment import EvaluatedPart, EvaluationFile
from gradsurgery.documents.plan import names as listed_names
from gradsurgery.errors import ArgumentError, DataError
from gradsurgery.report.classification_text import evaluation_sentences, evaluation_tables
from gradsurgery.report.report import write_evaluation
from gradsurgery.report.section import counted
from gradsurgery.report.terminal import OnTerminal


def evaluate(
    model: Annotated[str, opt.MODEL],
    data: Annotated[str, opt.DATA],
    *,
    domains: Annotated[
        str | None,
        typer.Option("--domains", help="Of the data, separated by commas. Default: all."),
    ] = None,
    part: Annotated[
        EvaluatedPart,
        typer.Option("--part", help="Of the split of the model's run, whose folder MODEL is."),
    ] = "all",
    as_domain: Annotated[
        str | None,
        typer.Option("--as-domain", help="DATA is a folder class/image, of a domain called so."),
    ] = None,
    layout: LayoutOption = "",
    columns: ColumnsOption = "",
    skip_bad: SkipBadOption = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder. Default: one in evaluation/<data> of these options."),
    ] = None,
    backbone: opt.OwnBackboneOption = None,
    device: opt.DeviceOption = "auto",
    batch_size: opt.PictureBatchOption = 128,
    workers: opt.WorkersOption = None,
) -> None:
    """Say how right the model is on a data set: by domain, by class, and how far to trust it.

    Images of classes that the model does not know are counted apart. Tables and figures are
    written into a folder.
    """
    trained = load_model(model, backbone=backbone, device=device)
    source = _opened(data, layout, columns, as_domain)
    with continuable(), progress_bar(len(source.listing.identities), "evaluating") as tell:
        evaluation = evaluate_model(
            trained,
            source,
            domains=None if domains is None else listed_names(domains),
            part=part,
            skip_bad=skip_bad,
            batch_size=batch_size,
            workers=workers,
            progress=tell,
        )
    reads = [str(Path(data).absolute()), layout, columns, as_domain, skip_bad]
    directory = out or _default_folder(evaluation, trained, domains, reads)
    write_evaluation(evaluation, directory)
    print_sentences(evaluation_sentences(evaluation))
    print()
    Console().print(OnTerminal(evaluation_tables(evaluation)))
    if source.left_out:
        files = counted(len(source.left_out), "file", "is something else than an image")
        print(f"left out of {source.name}: {files}", file=sys.stderr)
    print(f"tables and figures: {directory}")


def _default_folder(
    evaluation: EvaluationFile, trained: TrainedModel, domains: str | None, reads: Sequence[object]
) -> Path:
    """Says of what model and images it is; other options than these have another folder."""
    about, part = trained.about, evaluation.part
    said = [about.method, about.target or "", f"seed-{about.seed}", part if part != "all" else ""]
    chosen = sorted(evaluation.domains) if domains is not None else []
    options = json.dumps([evaluation.model_digest, part, chosen, *reads])
    digest = hashlib.sha256(options.encode()).hexdigest()[:8]
    name = "-".join([*filter(None, said), *chosen])
    return Path("evaluation", folder_name(evaluation.data), f"{folder_name(name)}-{digest}")


def _opened(data: str, layout: str, columns: str, as_domain: str | None) -> Source:
    if as_domain is None:
        try:
            return open_source(data, **reading(data, layout, columns, "all"))
        except DataError as error:
            if layout or columns or not _is_one_domain(Path(data).expanduser()):
                raise
            raise DataError(f"{error}, or call it one domain: --as-domain NAME") from error
    if layout or columns:
        raise ArgumentError("--as-domain takes a folder class/image; leave layout and columns out")
    root = Path(data).expanduser()
    if not root.is_dir():
        raise ArgumentError(f"--as-domain takes a folder class/image, found {data!r}")
    return OneDomainSource(root, as_domain)


def _is_one_domain(folder: Path) -> bool:
    """Whether images lie in it as class/image."""
    try:
        return folder.is_dir() and bool(OneDomainSource(folder, "any").listing.identities)
    except DataError:
        return False
