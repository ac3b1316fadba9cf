"""`gradsurgery export`: a trained model for another runtime, or on the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from gradsurgery.cli import options as opt
from gradsurgery.deployment import load_model
from gradsurgery.deployment.export import (
    SUFFIXES,
    Format,
    Normalization,
    description_file,
    export_model,
)
from gradsurgery.deployment.hub import push as upload
from gradsurgery.documents.record import Record
from gradsurgery.errors import ArgumentError
from gradsurgery.report.model_card import short_card


def export(
    model: Annotated[str, opt.MODEL],
    *,
    form: Annotated[
        Format | None, typer.Option("--format", help="Of the file. With --push: none.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Default: model.onnx, .pt2 or .pt. Its description is beside it: model.onnx.json.",
        ),
    ] = None,
    normalization: Annotated[
        Normalization,
        typer.Option(
            "--normalization",
            help="inside: the input is uint8 (batch, size, size, 3), as images are decoded; "
            "beside: it is float32 (batch, 3, size, size), normalised.",
        ),
    ] = "inside",
    push: Annotated[
        str | None, typer.Option("--push", metavar="hf://owner/name", help="Upload it to the Hub.")
    ] = None,
    backbone: opt.OwnBackboneOption = None,
) -> None:
    """Write the model for another runtime, run it there, and compare it with the model itself.

    --push uploads the model file, with the record, the split and the README.md beside it (or a
    short one, where there is none), and what was exported.
    """
    if form is None and push is None:
        raise ArgumentError(f"give --format ({', '.join(SUFFIXES)}) or --push hf://owner/name")
    trained = load_model(model, backbone=backbone, device="cpu")
    written: tuple[Path, ...] = ()
    if form is not None:
        path = out or Path(f"model{SUFFIXES[form]}")
        if path.suffix != SUFFIXES[form]:
            raise ArgumentError(f"cannot write {path}: its name must end in {SUFFIXES[form]}")
        difference = export_model(trained, path, form, normalization)
        print(f"{path}: logits differ from the model's by {difference:.1g} at most")
        written = (path, description_file(path))
    if push is not None:
        beside = trained.file.parent / Record.file_name
        card = short_card(trained.about, Record.load(beside) if beside.is_file() else None)
        print(f"uploaded: {upload(trained.file, push, written, card)}")
