"""How a network is measured: in evaluation mode, on images of a set, at steps of its training."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import fsum, isnan
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from gradsurgery.backbones import Backbone, keeping_modes
from gradsurgery.data import ImageSet, normalize
from gradsurgery.data.pixels import gather
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.errors import ArgumentError, DataError
from gradsurgery.training.checkpoint import refuse_others

Positions = Int64[np.ndarray, " images"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, no dropout, and batch normalisation by running statistics; then as it was before."""
    with keeping_modes(model):
        model.eval()
        yield


def normalized(
    backbone: Backbone, images: ImageSet, positions: Positions
) -> Float[Tensor, "batch 3 height width"]:
    """The images as the network takes them, on its device."""
    device = next(backbone.model.parameters()).device
    return normalize(gather(images.images, positions).to(device), backbone.mean, backbone.std)


def labelled_images(
    backbone: Backbone, images: ImageSet, positions: Positions
) -> tuple[Float[Tensor, "batch 3 height width"], Int64[Tensor, " batch"]]:
    """The images as the network takes them and their labels, on its device."""
    x = normalized(backbone, images, positions)
    return x, torch.from_numpy(images.label[positions]).to(x.device)


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """The mean of those that are there and a number; None where there are none."""
    found = [value for value in values if value is not None and not isnan(value)]
    return fsum(found) / len(found) if found else None


def check_same(
    wanted: object, found: object, names: Iterable[str], directory: Path, what: str
) -> None:
    """Raise `ArgumentError` where some of these options of what `directory` holds are others."""
    both = {name: (getattr(wanted, name), getattr(found, name)) for name in names}
    different = {name: (new, old) for name, (new, old) in both.items() if new != old}
    refuse_others(directory, what, different)


def check_every_step(configuration: RunConfiguration) -> None:
    """Raise `ArgumentError` for a run that may end before its last step is measured."""
    if configuration.patience:
        raise ArgumentError(
            "what is measured up to the last step needs all of them, found patience "
            f"{configuration.patience}; leave it out"
        )


def observer_at(
    steps: Iterable[int], file: Path, measure: Callable[[int, Backbone], None]
) -> Callable[[int, Backbone], None]:
    """An observer for `gradsurgery.training.train` that measures at these steps, each once.

    file: that `measure` writes; what killed processes were writing of it is removed.

    It raises `DataError` where the run goes on from a later step than one that is missing.
    """
    missing = set(steps)

    def observe(step: int, backbone: Backbone) -> None:
        if any(earlier < step for earlier in missing):
            raise DataError(
                f"{file.parent} holds a run at step {step} that was not measured at step "
                f"{min(missing)}; delete the folder, or choose another one (--out)"
            )
        if step in missing:
            for leftover in file.parent.glob(f".{file.name}.*.tmp"):
                leftover.unlink(missing_ok=True)
            measure(step, backbone)
            missing.remove(step)

    return observe
