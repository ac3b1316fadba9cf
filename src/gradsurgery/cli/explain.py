"""`gradsurgery explain`: what a model's answers rest on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from jaxtyping import Int64

from gradsurgery.atomic import check_folder
from gradsurgery.cli import options as opt
from gradsurgery.cli.finished_runs import print_sentences
from gradsurgery.cli.live import continuable, displayed
from gradsurgery.cli.trained_models import loaded, name_files
from gradsurgery.data import ImageSet, SkippedImage, open_source
from gradsurgery.data.formats import BadImageError
from gradsurgery.deployment import TrainedModel
from gradsurgery.deployment.pictures import check_named, listed_pictures
from gradsurgery.documents.record import Record, SplitFile
from gradsurgery.documents.studies import Explanation, ExplanationOptions
from gradsurgery.errors import ArgumentError, DataError
from gradsurgery.report.report import write_explanation
from gradsurgery.report.section import counted
from gradsurgery.studies.explanation import (
    ExplainedImage,
    Subject,
    captum_attributions,
    explain_domains,
    explain_pictures,
)
from gradsurgery.training.progress import TrainingProgress
from gradsurgery.training.run import prepare_images

Explained = tuple[Explanation, list[ExplainedImage]]
_MOST = 60  # pictures on one figure


@opt.takes_options_of(ExplanationOptions)
def explain(
    model: Annotated[str, opt.MODEL],
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[IMAGES...]",
            help="Pictures, and folders of any depth. Without, the test images of the run whose "
            "folder MODEL is.",
        ),
    ] = None,
    *,
    data: Annotated[
        str | None, typer.Option(help="Where the run's data set lies now, if it was moved.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Default: the folder explanation in that of the model, of pictures "
            "explanation-pictures."
        ),
    ] = None,
    backbone: opt.OwnBackboneOption = None,
    device: opt.DeviceOption = "auto",
    cache: opt.CacheOption = None,
    options: dict[str, Any],
) -> None:
    """Show what a model's answers rest on, and what its features tell apart.

    Of a run: right and wrong answers in every domain, explained by Grad-CAM or integrated
    gradients, and a map of the test images' features. A report of the run shows them too.
    """
    chosen = ExplanationOptions(**options)
    captum_attributions()  # raises where it is not installed
    check_named(images or [])
    if out is not None:
        check_folder(out)
    trained = loaded(model, backbone, device)
    folder = out or trained.file.parent / ("explanation-pictures" if images else "explanation")
    check_folder(folder)
    with continuable():
        if images:
            explanation, shown = _of_pictures(trained, images, chosen)
        else:
            explanation, shown = _of_run(trained, chosen, data, cache)
    print_sentences(write_explanation(explanation, shown, folder))


def _of_pictures(
    trained: TrainedModel, images: list[Path], options: ExplanationOptions
) -> Explained:
    pictures, left_out = listed_pictures(images)
    names, decoded, skipped = [], [], []
    for picture in pictures:
        try:
            decoded.append(trained.preprocess.pixels(picture.content))
            names.append(Path(picture.name).name)
        except BadImageError as error:
            skipped.append(SkippedImage(picture.name, str(error)))
        if len(decoded) > _MOST:
            raise ArgumentError(
                f"explain takes up to {_MOST} pictures at a time, found more; name fewer"
            )
    name_files(skipped, left_out)
    if not decoded:
        raise DataError(f"none of {counted(len(skipped), 'picture')} can be decoded")
    pixels = torch.from_numpy(np.stack(decoded))
    return explain_pictures(_subject(trained), pixels, names, options)


def _of_run(
    trained: TrainedModel, options: ExplanationOptions, data: str | None, cache: Path | None
) -> Explained:
    if (folder := trained.run_folder) is None:
        raise ArgumentError(
            f"{trained.file} lies beside no record of a run; name the pictures to explain"
        )
    record, split = Record.load(folder), SplitFile.load(folder)
    configuration = record.configuration
    with displayed("explanation", lines=False) as report:
        try:
            source = open_source(data or configuration.data, **configuration.reading)
        except (ArgumentError, DataError) as error:
            if data is not None:
                raise
            raise DataError(
                f"cannot open what the run of {trained.file} was trained on, {configuration.data}; "
                f"say where that is now with --data: {error}"
            ) from error
        images = prepare_images(source, configuration, cache, report)
        return explain_domains(
            _subject(trained),
            images,
            _test_images(images, split),
            options,
            target=configuration.target,
            progress=lambda done, total: report(TrainingProgress("testing", done, total)),
        )


def _test_images(images: ImageSet, split: SplitFile) -> Mapping[str, Int64[np.ndarray, " images"]]:
    """Where the images that the run was tested on lie in the set, by domain."""
    places = {identity: at for at, identity in enumerate(images.identities)}
    named = {domain: parts["test"] for domain, parts in split.domains.items()}
    if not any(named.values()):
        raise DataError(
            "the run's split has no test images to explain answers on; name pictures to explain"
        )
    for identity in (one for names in named.values() for one in names):
        if identity not in places:
            raise DataError(
                f"{images.name} has no image {identity}, which the run was tested on; give the "
                "data set it was trained on with --data"
            )
    return {
        domain: np.array([places[one] for one in names], dtype=np.int64)
        for domain, names in named.items()
    }


def _subject(trained: TrainedModel) -> Subject:
    about = trained.about
    held_out = f", {about.target} held out" if about.target else ""
    return Subject(
        f"{about.method}{held_out}",
        trained.module,
        trained.classes,
        trained.preprocess.mean,
        trained.preprocess.std,
    )
