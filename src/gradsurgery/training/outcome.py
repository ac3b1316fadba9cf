"""What a model comes to: evaluated on images, and a run's tests, file and record at its end."""

import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from gradsurgery import __version__
from gradsurgery.backbones import Backbone
from gradsurgery.data import ImageLoader, ImageSet, Split
from gradsurgery.data.groups import group_numbers
from gradsurgery.data.loader import prefetched
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.deployment import ModelDescription, domains_known
from gradsurgery.documents.record import (
    Cost,
    DataRecord,
    ModelRecord,
    ModelResult,
    Record,
    Result,
    SkippedFile,
    SplitRecord,
    SplitSizes,
)
from gradsurgery.documents.tally import Tally
from gradsurgery.training.checkpoint import Checkpoint, save_weights
from gradsurgery.training.device import AutocastFactory, environment, peak_memory_bytes
from gradsurgery.training.frozen_features import FeatureLoader
from gradsurgery.training.images_used import ImagesUsed
from gradsurgery.training.learner import Learner
from gradsurgery.training.progress import ProgressCallback, TrainingProgress

_BATCH = 128  # images at a time: bounds memory; the result hardly depends on it
_FEW = 16
"""How many of them each thread of a processor passes at once. For more it asks for memory anew in
every layer; for fewer it may sum up in another order, and threads wait for each other."""


class Answers:
    """What a classifier says of images, added batch by batch; it stays on the device until then."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, ...]] = []
        self._groups: list[NDArray[np.int64]] = []

    def add(
        self,
        logits: Float[Tensor, "batch classes"],
        labels: Int64[Tensor, " batch"],
        groups: Int64[np.ndarray, " batch"] | None = None,
    ) -> None:
        """Take a batch in; logits in float32. groups: of `group_numbers`, for all or no batches."""
        if groups is not None:
            self._groups.append(groups)
        confidence, predicted = logits.softmax(dim=1).amax(dim=1), logits.argmax(dim=1)
        losses = functional.cross_entropy(logits, labels, reduction="none")
        self._parts.append((labels, predicted, confidence, losses))

    @property
    def count(self) -> int:
        """How many images they are of."""
        return sum(len(labels) for labels, *_ in self._parts)

    @property
    def correct(self) -> int:
        """How many of them have the class that is answered."""
        return int(sum((labels == predicted).sum() for labels, predicted, *_ in self._parts))

    def tally(self, classes: int) -> Tally:
        """Everything counted."""
        if not self._parts:
            return Tally(confusion=[""] * classes)
        labels, predicted, confidence, losses = (
            torch.cat(column).cpu().numpy() for column in zip(*self._parts, strict=True)
        )
        group = np.concatenate(self._groups) if self._groups else None
        return Tally.of(labels, predicted, confidence, losses, classes, group=group)


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy, accuracy in [0, 1], and what the same pass says of each image."""

    loss: float
    accuracy: float
    answers: Answers = field(default_factory=Answers)


@torch.no_grad()
def evaluate(
    backbone: Backbone,
    loader: ImageLoader,
    indices: Int64[np.ndarray, " chosen"],
    *,
    autocast: AutocastFactory,
    groups: Int64[np.ndarray, " images"] | None = None,
) -> Evaluation:
    """Loss and accuracy of the model, in evaluation mode, on the loader's images at `indices`.

    groups: of all the loader's images, from `group_numbers`.

    A loss that is not finite is returned as it is: it shows in the curve and decides nothing.
    """
    backbone.model.eval()
    device = loader.device
    loss = torch.zeros((), dtype=torch.float64, device=device)
    answers = Answers()
    at_once = _FEW * torch.get_num_threads() if device.type == "cpu" else _BATCH
    # in the order of the file
    chosen = [np.sort(indices[start : start + _BATCH]) for start in range(0, len(indices), _BATCH)]
    ahead = 0 if device.type == "cpu" else 1  # a processor has nothing to do meanwhile
    batches = prefetched(lambda i: loader.fetch(chosen[i]), 1, len(chosen), ahead=ahead)
    for positions, (_, fetched) in zip(chosen, batches, strict=True):
        images, labels = fetched()
        with autocast():
            parts = images.tensor_split(max(1, len(images) // at_once))
            logits = torch.cat([backbone.model(part).float() for part in parts])
        del images, parts  # before the next are made
        loss += functional.cross_entropy(logits, labels, reduction="sum").double()
        answers.add(logits, labels, None if groups is None else groups[positions])
    return Evaluation(float(loss) / len(indices), answers.correct / len(indices), answers)


MODEL_FILE = ModelDescription.file_name


@dataclass(frozen=True)
class Run:
    """A run under way.

    report: is told how far it is.
    """

    learner: Learner
    checkpoint: Checkpoint
    used: ImagesUsed
    loader: ImageLoader
    directory: Path
    report: ProgressCallback

    def evaluate(
        self,
        indices: Int64[np.ndarray, " chosen"],
        groups: Int64[np.ndarray, " images"] | None = None,
    ) -> Evaluation:
        """Loss and accuracy on the images at `indices` of the model that is judged."""
        learner = self.learner
        return evaluate(
            learner.judged, self.loader, indices, autocast=learner.autocast, groups=groups
        )

    def validate(self) -> Evaluation:
        """Loss and accuracy on the validation images of the source domains."""
        parts = [self.used.split.validation[d] for d in self.used.sources]
        if self.checkpoint.configuration.validation_mean == "images":
            parts = [np.concatenate(parts)]
        each = [self.evaluate(part) for part in parts if len(part)]
        return Evaluation(fmean(e.loss for e in each), fmean(e.accuracy for e in each))


def conclude(run: Run, *, cuda_graph: str | None) -> Record:
    """Test the last and the best model, write the best one's file, and make the run's record."""
    start = time.perf_counter()
    learner, checkpoint, used = run.learner, run.checkpoint, run.used
    c, images, backbone = checkpoint.configuration, used.images, learner.backbone
    result = _tested_models(run)
    # one of fewer steps would speak of another model
    (run.directory / Record.file_name).unlink(missing_ok=True)
    _save_model(learner.judged, c, images, result.best, run.directory)
    return Record(
        configuration=c,
        data=_data_record(used),
        split=_split_record(used.split),
        model=ModelRecord(
            parameters=sum(parameter.numel() for parameter in backbone.model.parameters()),
            pretrained=backbone.pretrained,
            weights_digest=backbone.weights_digest,
            weights_domains=domains_known(backbone.weights_metadata, images.name, images.domains),
        ),
        curves=checkpoint.curves,
        conflict=checkpoint.conflict if c.log_conflict else None,
        result=result,
        objects=checkpoint.objects,
        environment=environment(learner.device),
        cost=Cost(
            seconds=checkpoint.seconds + time.perf_counter() - start,
            seconds_per_step=checkpoint.step_seconds / checkpoint.step,
            data_wait=checkpoint.data_wait,
            peak_memory_bytes=peak_memory_bytes(learner.device),
            cuda_graph=cuda_graph,
            frozen_features=isinstance(run.loader, FeatureLoader),
        ),
    )


def _tested_models(run: Run) -> Result:
    """Accuracies of the last and the best model on every domain's test images.

    The best model is in the learner afterwards. It is the one of the highest validation accuracy,
    or what the run's average has selected, which is validated here.
    """
    average, checkpoint, curves = run.learner.average, run.checkpoint, run.checkpoint.curves
    domains = run.used.images.domains

    def validated(position: int) -> dict[str, Any]:
        accuracy = curves.validation_accuracy[position]
        return {"step": curves.step[position], "validation_accuracy": accuracy}

    last = _tested(run, 0, **validated(len(curves.step) - 1))
    selected = average.result()
    if selected is not None:
        _put(selected.weights, average.model)
        about = {"step": selected.last, "averaged_from": selected.first}
        accuracy = run.validate().accuracy
        best = _tested(run, len(domains), **about, validation_accuracy=accuracy)
        return Result(best=best, last=last)
    if checkpoint.best is not None:
        _put(checkpoint.best, average.model)
    return Result(best=_tested(run, len(domains), **validated(curves.best())), last=last)


def _put(weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Into the model, with the versions of its layers, without which MNASNet takes no weights."""
    state: Any = OrderedDict(weights)
    state._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(state)


def _tested(run: Run, first: int, **about: Any) -> ModelResult:
    """The judged model on the test images; its first domain is test number `first` of the run."""
    images, split, tested = run.used.images, run.used.split, {}
    target, total = run.checkpoint.configuration.held_out(images.domains), 2 * len(images.domains)
    groups = group_numbers(images.groups, images.domain)
    for position, domain in enumerate(images.domains, start=first):
        run.report(TrainingProgress("testing", position, total))
        if len(split.test[domain]):  # a split of the user's own may have none of a source
            tested[domain] = run.evaluate(split.test[domain], groups)
    run.report(TrainingProgress("testing", first + len(images.domains), total))
    held_back = np.empty(0, dtype=np.int64) if target is None else split.validation[target]
    return ModelResult(
        target_accuracy=None if target is None else tested[target].accuracy,
        target_validation_accuracy=run.evaluate(held_back).accuracy if len(held_back) else None,
        test_accuracy={domain: found.accuracy for domain, found in tested.items()},
        tests={
            domain: found.answers.tally(len(images.classes)) for domain, found in tested.items()
        },
        **about,
    )


def _save_model(
    backbone: Backbone,
    configuration: RunConfiguration,
    images: ImageSet,
    result: ModelResult,
    directory: Path,
) -> None:
    """Write `model.safetensors`; how to feed it is JSON in its header.

    Under one key, because safetensors writes several in an order of chance.
    """
    own = images.decoder if images.folder is not None else "a set that was not decoded here"
    description = ModelDescription(
        backbone=backbone.name,
        own_backbone=backbone.provenance,
        classes=list(images.classes),
        mean=list(backbone.mean),
        std=list(backbone.std),
        image_size=images.size,
        resize_first=images.resize_first,
        resize=images.resize,
        decoder=own,
        precision=configuration.precision,
        data=images.name,
        domains=configuration.sources(images.domains),
        domains_before=domains_known(backbone.weights_metadata, images.name, images.domains),
        target=configuration.held_out(images.domains),
        method=configuration.method,
        average=configuration.average,
        seed=configuration.seed,
        split_seed=configuration.seed_of_split,
        step=result.step,
        written_by=__version__,
    )
    metadata = {ModelDescription.key: description.model_dump_json()}
    save_weights(backbone.model.state_dict(), directory / MODEL_FILE, metadata)


def _data_record(used: ImagesUsed) -> DataRecord:
    """The record's part on the image set."""
    images = used.images
    counts = dict(zip(images.domains, images.counts().tolist(), strict=True))
    skipped, left_out = (
        [SkippedFile(identity=file.identity, reason=file.reason) for file in files]
        for files in (images.skipped, images.left_out)
    )
    return DataRecord(
        name=images.name,
        digest=images.digest,
        domains=list(images.domains),
        classes=list(images.classes),
        images={domain: sum(of_classes) for domain, of_classes in counts.items()},
        class_images=counts,
        skipped=skipped,
        left_out=left_out,
        identical=used.identical,
        doubts=used.doubts,
        alike=used.alike,
    )


def _split_record(split: Split) -> SplitRecord:
    """The record's part on the split."""
    sizes = {domain: SplitSizes(**parts) for domain, parts in split.sizes().items()}
    return SplitRecord(digest=split.digest, seed=split.seed, unused=len(split.unused), sizes=sizes)
