"""Loss, accuracy and what else is counted of a model on part of an image set."""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from gradsurgery.backbones import Backbone
from gradsurgery.data import ImageLoader
from gradsurgery.data.loader import prefetched
from gradsurgery.documents.tally import Tally
from gradsurgery.training.device import AutocastFactory

_BATCH = 128  # images at a time: bounds memory; the result hardly depends on it


class Answers:
    """What a classifier says of images, added batch by batch; it stays on the device until then."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, ...]] = []

    def add(self, logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, " batch"]) -> None:
        """Take a batch in; logits in float32."""
        confidence, predicted = logits.softmax(dim=1).amax(dim=1), logits.argmax(dim=1)
        losses = functional.cross_entropy(logits, labels, reduction="none")
        self._parts.append((labels, predicted, confidence, losses))

    @property
    def count(self) -> int:
        """How many images they are of."""
        return sum(len(labels) for labels, *_ in self._parts)

    def tally(self, classes: int) -> Tally:
        """Everything counted."""
        if not self._parts:
            return Tally(confusion=[""] * classes)
        labels, predicted, confidence, losses = (
            torch.cat(column).cpu().numpy() for column in zip(*self._parts, strict=True)
        )
        return Tally.of(labels, predicted, confidence, losses, classes)


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
) -> Evaluation:
    """Loss and accuracy of the model, in evaluation mode, on the loader's images at `indices`.

    A loss that is not finite is returned as it is: it shows in the curve and decides nothing.
    """
    backbone.model.eval()
    device = loader.device
    loss = torch.zeros((), dtype=torch.float64, device=device)
    answers = Answers()
    correct = torch.zeros((), dtype=torch.int64, device=device)
    # in the order of the file
    parts = [np.sort(indices[start : start + _BATCH]) for start in range(0, len(indices), _BATCH)]
    ahead = 0 if device.type == "cpu" else 1  # a processor has nothing to do meanwhile
    for _, fetched in prefetched(lambda i: loader.fetch(parts[i]), 1, len(parts), ahead=ahead):
        images, labels = fetched()
        with autocast():
            logits = backbone.model(images).float()
        del images  # before the next are made
        loss += functional.cross_entropy(logits, labels, reduction="sum").double()
        answers.add(logits, labels)
        correct += (logits.argmax(dim=1) == labels).sum()
    return Evaluation(float(loss) / len(indices), int(correct) / len(indices), answers)
