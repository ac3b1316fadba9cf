"""A trained model: what it is, what it was trained on, and what it says of pictures."""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor, nn

from gradsurgery.atomic import expanded
from gradsurgery.backbones import OwnBackbone, rebuild
from gradsurgery.data import Preparation, SkippedImage, cpus, normalize
from gradsurgery.deployment.model_file import PREFIX, ModelFile, downloaded, open_model_file
from gradsurgery.deployment.pictures import listed_pictures, prepared
from gradsurgery.documents.deployment import Deployment, ModelDescription
from gradsurgery.documents.record import Record
from gradsurgery.errors import ArgumentError, DataError, check_kind
from gradsurgery.training.device import autocast_factory, float32_products, resolve_device


@dataclass(frozen=True, eq=False)
class Predictions:
    """Probabilities of the classes, a row a picture, in the order in which they were given.

    classes: the model's, in the order of the columns.
    names: what the pictures are called: paths, or "image 0" of those in memory.
    probabilities: each from 0 to 1, those of a picture sum up to 1.
    skipped: the pictures that could not be decoded, and why.
    """

    classes: tuple[str, ...]
    names: list[str]
    probabilities: Float64[np.ndarray, "pictures classes"]
    skipped: tuple[SkippedImage, ...] = ()

    @property
    def labels(self) -> list[str]:
        """The most probable class of each picture."""
        return [self.classes[i] for i in self.probabilities.argmax(axis=1)]

    def top(self, count: int) -> list[list[tuple[str, float]]]:
        """The `count` most probable classes of each picture with their probabilities."""
        check_kind("count", count, int, "a whole number of classes")
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :count]
        return [
            [(self.classes[i], float(row[i])) for i in best]
            for row, best in zip(self.probabilities, order, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.names)


def joined(classes: tuple[str, ...], parts: Iterable[Predictions]) -> Predictions:
    """The predictions of several batches as one."""
    names: list[str] = []
    skipped: list[SkippedImage] = []
    rows = [np.empty((0, len(classes)), np.float64)]
    for part in parts:
        names += part.names
        skipped += part.skipped
        rows.append(part.probabilities)
    return Predictions(classes, names, np.concatenate(rows), tuple(skipped))


BATCH = 128
"""Pictures at a time, as in the tests of a run."""
_PIXELS_AT_ONCE = 4 * 224**2
"""By each thread. For more a processor has to ask for memory anew in every layer."""
MOST = 10_000
"""Pictures at a time, and threads, at most: memory is taken for all of them at once."""


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A classifier with what its pictures need.

    module: the network, in evaluation mode, on `device`: normalised images to logits.
    classes: their names, in the order of the logits.
    preprocess: makes of a picture what the network takes; a transform of torchvision.
    about: the data, domains, method and options that it was trained with.
    file: where it was read from.
    notes: what to know before its predictions are trusted.
    """

    module: nn.Module
    classes: tuple[str, ...]
    preprocess: Preparation
    about: ModelDescription
    device: torch.device
    file: Path
    notes: tuple[str, ...] = ()

    @property
    def run_folder(self) -> Path | None:
        """Where the record of its run lies: beside it, or where `deployment.json` says; or None."""
        folder = self.file.parent
        if not (folder / Record.file_name).is_file() and (folder / Deployment.file_name).is_file():
            folder = folder.parent / Deployment.load(folder).directory
        return folder if (folder / Record.file_name).is_file() else None

    def predict(
        self,
        images: Any,
        *,
        batch_size: int = BATCH,
        workers: int | None = None,
        skip_bad: bool = False,
    ) -> Predictions:
        """Classify pictures, decoded and prepared as in training.

        images: a picture (a path, a PIL image, an array uint8 [height, width, 3]; see
            `Preparation`), a folder of any depth, or an iterable of them.
        batch_size: pictures that are read at a time, which a GPU passes at once.
        workers: threads that decode; one a processor by default.
        skip_bad: leave out pictures that cannot be decoded, and list them in `skipped`.

        Raises `DataError` for the first picture that cannot be decoded (without `skip_bad`) and
        where a logit is not finite, `ArgumentError` for what is no picture.
        """
        check_kind("skip_bad", skip_bad, bool, "True or False")
        for note in self.notes:
            warnings.warn(note, stacklevel=2)
        pictures, _ = listed_pictures(images)
        parts = self.stream(pictures, batch_size=batch_size, workers=workers)
        return joined(self.classes, parts if skip_bad else map(_all_decoded, parts))

    def stream(
        self, images: Any, *, batch_size: int = BATCH, workers: int | None = None
    ) -> Iterator[Predictions]:
        """As `predict`, batch by batch: for any number of pictures, which are read as they come.

        What cannot be decoded is listed in `skipped`. A batch is yielded when up to two more have
        been read, so that pictures are decoded while the network works.
        """
        pictures, _ = listed_pictures(images, or_none=True)
        check_count("batch_size", batch_size)
        if workers is not None:
            check_count("workers", workers)
        jobs = ((name, partial(self.preprocess.pixels, content)) for name, content in pictures)
        for part in prepared(jobs, self.preprocess.size, batch_size, workers or cpus()):
            logits = self.logits(torch.from_numpy(part.pixels))
            yield Predictions(
                self.classes,
                part.keys,
                logits.double().softmax(dim=1).cpu().numpy(),
                tuple(SkippedImage(name, reason) for name, reason in part.bad),
            )

    @torch.no_grad()
    def logits(self, pixels: UInt8[Tensor, "batch size size 3"]) -> Float[Tensor, "batch classes"]:
        """Of decoded pictures, in float32, on the device; the passes have training's precision.

        Raises `DataError` where one is not finite.
        """
        size = self.preprocess.size
        check_kind("pixels", pixels, Tensor, f"a tensor uint8 [batch, {size}, {size}, 3]")
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise ArgumentError(
                f"pixels are uint8 [batch, {size}, {size}, 3], found {pixels.dtype} "
                f"{list(pixels.shape)}; decode pictures with `preprocess.pixels`"
            )
        if not len(pixels):
            return torch.empty(0, len(self.classes), device=self.device)
        images = normalize(pixels.to(self.device), self.preprocess.mean, self.preprocess.std)
        precision = self.about.precision
        with float32_products(self.device, precision), autocast_factory(self.device, precision)():
            few = max(1, _PIXELS_AT_ONCE * torch.get_num_threads() // size**2)
            at_once = few if self.device.type == "cpu" else len(images)
            logits = torch.cat([self.module(part).float() for part in images.split(at_once)])
        if not logits.isfinite().all():
            raise DataError(
                f"{self.file} gives logits that are not finite; its weights are damaged, or its "
                "training diverged: train it again"
            )
        return logits


def check_count(what: str, number: Any) -> None:
    """Raise `ArgumentError` unless it is a number of pictures or threads that memory is for."""
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= MOST:
        raise ArgumentError(f"{what} is a whole number from 1 to {MOST}, found {number!r:.80}")


def load_model(
    place: str | Path, *, backbone: OwnBackbone | None = None, device: str = "auto"
) -> TrainedModel:
    """The trained model of a run, a deployment, a `model.safetensors` or the Hub, ready to predict.

    place: its folder, the file, or "hf://owner/name" (also "hf://owner/name@revision"). It is read
        as data: nothing in it is run or imported.
    backbone: for a network of your own, the function or the module (or `package.module:name`).
    device: auto (cuda where there is one, else cpu), cpu or cuda.

    Raises `WeightsError` or `DataError` for a file that is none, damaged, or of a later version,
    `ArgumentError` where the backbone has to be handed over.

        model = gs.load_model("runs/photos/shop_c/agr-sum/seed-0")
        model.predict(["a.jpg", "b.png"]).labels
    """
    check_kind("place", place, (str, Path), "a run's folder, a model.safetensors or hf://…")
    where = resolve_device(device)
    return built_model(opened_file(place), where, backbone)


def built_model(
    file: ModelFile, device: torch.device, backbone: OwnBackbone | None
) -> TrainedModel:
    """The model of an opened file; the rest as `load_model` has it."""
    about = file.description
    module = rebuild(
        about.backbone,
        file.shapes,
        file.read,
        classes=len(about.classes),
        image_size=about.image_size,
        own=backbone,
        origin=str(file.path),
    )
    notes = list(file.assumed)
    if about.decoder is not None:
        notes.append(
            f"the images that {file.path} was trained on were decoded by {about.decoder}; other "
            "pictures are decoded as usual"
        )
    return TrainedModel(
        module=module.to(device),
        classes=tuple(about.classes),
        preprocess=Preparation(
            about.image_size,
            tuple(about.mean),
            tuple(about.std),
            about.resize_first,
            about.resize,
        ),
        about=about,
        device=device,
        file=file.path,
        notes=tuple(notes),
    )


def opened_file(place: str | Path) -> ModelFile:
    """The model file at `place`, of which only the header is read."""
    text = str(place)
    return open_model_file(downloaded(text) if text.startswith(PREFIX) else expanded(place))


def _all_decoded(part: Predictions) -> Predictions:
    for image in part.skipped:
        raise DataError(
            f"cannot decode {image.identity}: {image.reason}; replace it, or leave such pictures "
            "out with skip_bad=True"
        )
    return part
