"""Where the arithmetic happens and in which precision."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from gradsurgery.documents.configuration import Precision
from gradsurgery.errors import ArgumentError

AutocastFactory = Callable[[], AbstractContextManager[Any]]


def resolve_device(name: str) -> torch.device:
    """The device called `name`; "auto" is cuda where there is one, else cpu.

    Apple's mps is left out: it has no float64, in which gradients are compared and summed.

    Raises `ArgumentError` where torch knows no such device or this machine has none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ArgumentError(
            f"device {name!r} cannot be used ({reason}); choose auto, cpu or cuda"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise ArgumentError(f"device {name!r} cannot train; choose auto, cpu or cuda")
    return device


def autocast_factory(device: torch.device, precision: Precision) -> AutocastFactory:
    """A factory of the contexts the forward passes run in."""
    if precision == "float32":
        return nullcontext
    return partial(torch.autocast, device.type, dtype=getattr(torch, precision))


def loss_scaler(device: torch.device, precision: Precision) -> torch.amp.GradScaler | None:
    """float16 has too small a range for gradients: their loss is scaled, here and only here."""
    return torch.amp.GradScaler(device.type) if precision == "float16" else None
