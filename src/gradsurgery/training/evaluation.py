"""Loss and accuracy of a model on part of an image set."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch.nn import functional

from gradsurgery.backbones import Backbone
from gradsurgery.data import ImageSet, normalize
from gradsurgery.data.batches import gather
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
    images: ImageSet,
    indices: Int64[np.ndarray, " chosen"],
    *,
    device: torch.device,
    autocast: AutocastFactory,
) -> Evaluation:
    """Loss and accuracy of the model, in evaluation mode, on `images` at `indices`.

    A loss that is not finite is returned as it is: it shows in the curve and decides nothing.
    """
    backbone.model.eval()
    loss = torch.zeros((), dtype=torch.float64)
    correct = 0
    for start in range(0, len(indices), _BATCH):
        chosen = np.sort(indices[start : start + _BATCH])  # in the order of the file
        pixels = gather(images.images, chosen).to(device)
        labels = torch.from_numpy(images.label[chosen]).to(device)
        with autocast():
            logits = backbone.model(normalize(pixels, backbone.mean, backbone.std)).float()
        loss += functional.cross_entropy(logits, labels, reduction="sum").cpu().double()
        correct += int((logits.argmax(dim=1) == labels).sum())
    return Evaluation(float(loss) / len(indices), correct / len(indices))
