"""From the last step to the record: tests, the best model's file, what it cost."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradsurgery.backbones import Backbone
from gradsurgery.data import ImageSet, Split
from gradsurgery.training.checkpoint import Checkpoint, save_weights
from gradsurgery.training.configuration import RunConfiguration
from gradsurgery.training.evaluation import Evaluation, evaluate
from gradsurgery.training.learner import Learner
from gradsurgery.training.progress import Report, TrainingProgress
from gradsurgery.training.record import (
    DataRecord,
    ModelRecord,
    ModelResult,
    Result,
    SkippedFile,
    SplitRecord,
    SplitSizes,
)

MODEL_FILE = "model.safetensors"


def assess_models(
    learner: Learner,
    checkpoint: Checkpoint,
    images: ImageSet,
    split: Split,
    *,
    validate: Callable[[], Evaluation],
    report: Report,
) -> Result:
    """Accuracies of the last and the best model on every domain's test images.

    The best model is in the learner afterwards. It is the one of the highest validation accuracy,
    or what the run's average has selected, which is validated here.
    """
    curves, domains = checkpoint.curves, images.domains
    total = 2 * len(domains)

    def accuracies(first: int) -> dict[str, float]:
        found = {}
        for position, domain in enumerate(domains):
            report(TrainingProgress("testing", first + position, total))
            found[domain] = evaluate(
                learner.judged,
                images,
                split.test[domain],
                device=learner.device,
                autocast=learner.autocast,
            ).accuracy
        report(TrainingProgress("testing", first + len(domains), total))
        return found

    def result(position: int, test: dict[str, float]) -> ModelResult:
        return ModelResult(
            step=curves.step[position],
            validation_accuracy=curves.validation_accuracy[position],
            target_accuracy=test[checkpoint.configuration.target],
            test_accuracy=test,
        )

    last = result(len(curves.step) - 1, accuracies(0))
    selected = learner.average.result()
    if selected is not None:
        learner.average.model.load_state_dict(selected.weights)
        accuracy, tested = validate().accuracy, accuracies(len(domains))
        best = ModelResult(
            step=selected.last,
            averaged_from=selected.first,
            validation_accuracy=accuracy,
            target_accuracy=tested[checkpoint.configuration.target],
            test_accuracy=tested,
        )
        return Result(best=best, last=last)
    if checkpoint.best is not None:
        learner.average.model.load_state_dict(checkpoint.best)
    return Result(best=result(curves.best(), accuracies(len(domains))), last=last)


def save_model(
    backbone: Backbone,
    configuration: RunConfiguration,
    images: ImageSet,
    result: ModelResult,
    directory: Path,
) -> None:
    """Write `model.safetensors`; how to feed it is JSON under the key "gradsurgery" of its header.

    One key, because safetensors writes several in an order of chance.
    """
    description: dict[str, Any] = {
        "backbone": backbone.name,
        "classes": images.classes,
        "mean": backbone.mean,
        "std": backbone.std,
        "image_size": configuration.image_size,
        "data": images.name,
        "target": configuration.target,
        "method": configuration.method,
        "average": configuration.average,
        "seed": configuration.seed,
        "step": result.step,
    }
    metadata = {"gradsurgery": json.dumps(description)}
    save_weights(backbone.model.state_dict(), directory / MODEL_FILE, metadata)


def describe_data(images: ImageSet) -> DataRecord:
    """The record's part on the image set."""
    counts = images.counts().sum(axis=1).tolist()
    return DataRecord(
        name=images.name,
        digest=images.digest,
        domains=list(images.domains),
        classes=list(images.classes),
        images=dict(zip(images.domains, counts, strict=True)),
        skipped=[SkippedFile(identity=s.identity, reason=s.reason) for s in images.skipped],
    )


def describe_split(split: Split) -> SplitRecord:
    """The record's part on the split."""
    sizes = {domain: SplitSizes(**parts) for domain, parts in split.sizes().items()}
    return SplitRecord(digest=split.digest, seed=split.seed, sizes=sizes)


def describe_model(backbone: Backbone) -> ModelRecord:
    """The record's part on the network."""
    return ModelRecord(
        parameters=sum(parameter.numel() for parameter in backbone.model.parameters()),
        pretrained=backbone.pretrained,
        weights_digest=backbone.weights_digest,
    )
