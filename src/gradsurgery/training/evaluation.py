"""Loss and accuracy of a model on part of an image set."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch.nn import functional

from gradsurgery.backbones import Backbone
from gradsurgery.data import ImageLoader
from gradsurgery.data.loader import prefetched
from gradsurgery.training.device import AutocastFactory

_BATCH = 128  # images at a time: bounds memory; the result hardly depends on it


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy and accuracy in [0, 1]."""

    loss: float
    accuracy: float


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
        correct += (logits.argmax(dim=1) == labels).sum()
    return Evaluation(float(loss) / len(indices), int(correct) / len(indices))
