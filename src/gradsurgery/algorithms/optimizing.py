"""The optimiser's step after the gradients are there."""

import torch

from gradsurgery.errors import NonFiniteError

# A loss scaler halves its scale whenever a gradient overflows. Below this, no scale helps.
_LEAST_SCALE = 2.0**-10


def take_step(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None) -> None:
    """Step the optimiser, through the scaler where there is one.

    Raises `NonFiniteError` where the gradients are not finite whatever the scale.
    """
    if scaler is None:
        optimizer.step()
        return
    scaler.step(optimizer)
    scaler.update()
    if scaler.is_enabled() and scaler.get_scale() < _LEAST_SCALE:
        raise NonFiniteError(
            "the gradients are not finite at any scale of the loss; use float32 or bfloat16, lower "
            "the learning rate or look at the images",
            domain=None,
        )
