"""`gradsurgery predict`: classify pictures with a trained model."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from gradsurgery.backbones.weights import file_digest
from gradsurgery.cli import options as opt
from gradsurgery.cli.train import continuable
from gradsurgery.deployment import Predictions, load_model
from gradsurgery.deployment.pictures import check_named, listed_pictures
from gradsurgery.deployment.predictions_file import predictions_file
from gradsurgery.errors import DataError
from gradsurgery.report.section import counted

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
            "--out",
            help="A .csv or .parquet file; one that is there is gone on with. Default: print.",
        ),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Classes to give for each picture.")] = 1,
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
    trained = load_model(model, backbone=backbone, device=device)
    for note in trained.notes:
        print(f"note: {note}", file=sys.stderr)
    top = min(top, len(trained.classes))
    digest = file_digest(trained.file) if out else ""
    opened = nullcontext() if out is None else predictions_file(out, top, digest)
    pictures, left_out = listed_pictures(images)
    skipped: list[str] = []
    before = failed = count = 0
    shown = out is not None or not sys.stdout.isatty()
    with continuable(), opened as file, _counted(shown=shown) as tell:
        if file is not None and (before := len(file.done)):
            pictures = (picture for picture in pictures if picture.name not in file.done)
            failed = file.failed
        for part in trained.stream(pictures, batch_size=batch_size, workers=workers):
            if file is not None:
                file.add(part)
            else:
                _print_rows(part, top)
            count += len(part)
            skipped += [f"{image.identity}: {image.reason}" for image in part.skipped]
            tell(count + len(skipped))
    if before:
        row = f"{counted(before, 'picture')} had {'its' if before == 1 else 'their'} row before"
        again = ", {} with an error; delete such a row to have its picture tried again"
        print(row + (again.format(failed) if failed else ""), file=sys.stderr)
    name_files(skipped, "cannot be decoded")
    name_files(
        [f"{file.identity}: {file.reason}" for file in left_out], "is something else than a picture"
    )
    if out is not None:
        print(f"{counted(count, 'prediction')}: {out}")
    if skipped and not count and not before:
        raise DataError(f"none of {counted(len(skipped), 'picture')} can be decoded")


def _print_rows(predictions: Predictions, top: int) -> None:
    for name, best in zip(predictions.names, predictions.top(top), strict=True):
        said = "  ".join(f"{label} {probability:.1%}" for label, probability in best)
        sys.stdout.write(f"{name}  {said}\n")


def name_files(files: list[str], what: str) -> None:
    """Say which files were left out, and why."""
    if files:
        print(f"{counted(len(files), 'file', what)}:", file=sys.stderr)
    for line in files[:_NAMED]:
        print(f"  {line}", file=sys.stderr)
    if len(files) > _NAMED:
        print(f"  and {len(files) - _NAMED:,} more", file=sys.stderr)


@contextmanager
def _counted(*, shown: bool) -> Iterator[Callable[[int], None]]:
    """Shows on a terminal how many pictures are done."""
    console = Console(stderr=True)
    if not (shown and console.is_terminal):
        yield lambda _: None
        return
    columns = TextColumn("{task.completed} pictures, {task.fields[speed]} a second")
    with Progress(columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("", total=None, speed="–")

        def tell(done: int) -> None:
            elapsed = bar.tasks[0].elapsed or 0.0
            bar.update(task, completed=done, speed=f"{done / elapsed:.0f}" if elapsed else "–")

        yield tell
