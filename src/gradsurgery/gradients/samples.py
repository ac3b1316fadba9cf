"""Images of a set as a network takes them, and networks in evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from gradsurgery.backbones import Backbone
from gradsurgery.data import ImageSet, normalize
from gradsurgery.data.batches import gather


def labelled_images(
    backbone: Backbone, images: ImageSet, indices: Int64[np.ndarray, " batch"]
) -> tuple[Float[Tensor, "batch 3 height width"], Int64[Tensor, " batch"]]:
    """The normalised images at `indices` and their labels, on the device of the backbone."""
    device = next(backbone.model.parameters()).device
    pixels = gather(images.images, indices).to(device)
    labels = torch.from_numpy(images.label[indices]).to(device)
    return normalize(pixels, backbone.mean, backbone.std), labels


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, no dropout, and batch normalisation by running statistics; then as it was before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
