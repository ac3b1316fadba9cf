"""Where the arithmetic happens and in which precision."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from gradsurgery.errors import ArgumentError
from gradsurgery.training.configuration import Precision

AutocastFactory = Callable[[], AbstractContextManager[Any]]


def resolve_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the first there is of cuda, mps and cpu.

    Raises `ArgumentError` where torch knows no such device or this machine has none.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        usable = accelerator is not None and accelerator.type in ("cuda", "mps")
        return torch.device(accelerator.type if accelerator is not None and usable else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ArgumentError(
            f"device {name!r} cannot be used ({reason}); choose auto, cpu, cuda or mps"
        ) from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise ArgumentError(f"device {name!r} cannot train; choose auto, cpu, cuda or mps")
    return device


def autocast_factory(device: torch.device, precision: Precision) -> AutocastFactory:
    """A factory of the contexts the forward passes run in."""
    if precision == "float32":
        return nullcontext
    return partial(torch.autocast, device.type, dtype=getattr(torch, precision))


def loss_scaler(device: torch.device, precision: Precision) -> torch.amp.GradScaler | None:
    """float16 has too small a range for gradients: their loss is scaled, here and only here."""
    return torch.amp.GradScaler(device.type) if precision == "float16" else None
