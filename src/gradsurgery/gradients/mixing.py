"""Whether the samples of a batch see each other on their way through a network."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gradsurgery.errors import ArgumentError


def normalizes_by_batch(model: nn.Module) -> bool:
    """Whether a layer normalises by the statistics of its batch, as the model's mode has it."""
    return any(
        isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None)
        for layer in model.modules()
    )


def check_samples_apart(model: nn.Module) -> None:
    """Raise `ArgumentError` where a layer normalises by the statistics of its batch.

    The gradient of one sample does not exist there: its loss depends on every other sample.
    """
    for name, layer in model.named_modules():
        if not isinstance(layer, _BatchNorm):
            continue
        if layer.running_mean is None:
            raise ArgumentError(
                f"the batch normalisation {name or type(layer).__name__} keeps no running "
                "statistics, so that samples have no gradient of their own; build it with "
                "track_running_stats=True"
            )
        if layer.training:
            raise ArgumentError(
                f"the batch normalisation {name or type(layer).__name__} is in training mode, "
                "where samples have no gradient of their own; call model.eval(), or "
                'gradsurgery.backbones.set_training_mode(model, "frozen")'
            )
