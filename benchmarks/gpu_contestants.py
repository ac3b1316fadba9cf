"""The steps that are measured on a GPU: method, precision, memory layout, graph."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from contestants import OTHERS, Autocast, Batches, adam, method_step, untrained
from torch import nn

from gradsurgery.training.device import float32_products

METHODS = ("deep-all", "agr-sum", "agr-rand", "pcgrad")


@dataclass(frozen=True)
class Entry:
    """One contestant.

    precision: "default" is torch's own, TF32 in convolutions and float32 in matrix products.
    """

    name: str
    precision: str = "default"
    channels_last: bool = False
    graph: bool = False
    compiled: bool = False

    @property
    def label(self) -> str:
        """How it is called in tables."""
        extras = [
            "" if self.precision == "default" else self.precision,
            "channels last" if self.channels_last else "",
            "graph" if self.graph else "",
            "compiled" if self.compiled else "",
        ]
        return ", ".join([self.name, *filter(None, extras)])


def entries_of(device: str, *, compiled: bool) -> list[list[Entry]]:
    """Groups whose entries take turns; a processor has no graphs."""
    if compiled:
        return [[Entry("plain: pooled", "bfloat16", channels_last=True, compiled=True)]]
    others = [name for name in ("as published: agr-sum", "TorchJD: PCGrad") if name in OTHERS]
    default = [Entry(name) for name in (*METHODS, *others, "plain: pooled", "plain: D passes")]
    default += [Entry(name, graph=True) for name in METHODS]
    groups = [default]
    for precision in ("bfloat16", "tf32"):
        names = (*METHODS[:2], "pcgrad", "plain: pooled", "as published: agr-sum")
        group = [Entry(name, precision, channels_last=True) for name in names]
        group += [Entry(name, precision, True, graph=True) for name in names[:3]]
        groups.append(group)
    return [[entry for entry in group if device == "cuda" or not entry.graph] for group in groups]


def prepared(
    entry: Entry, network: str, batches: Batches, image_size: int, device: str
) -> Callable[[], object]:
    """The entry's step, on a model of its own."""
    model = untrained(network, image_size, device)
    if entry.channels_last:
        model = model.to(memory_format=torch.channels_last)
    step = _step(entry, model, batches, device)

    def run() -> None:
        with products(entry.precision, device):
            step()

    return run


def _step(entry: Entry, model: nn.Module, batches: Batches, device: str) -> Callable[[], object]:
    autocast: Autocast = nullcontext
    if entry.precision in ("bfloat16", "float16"):
        autocast = partial(torch.autocast, device, dtype=getattr(torch, entry.precision))
    optimizer = adam(model.parameters())
    if entry.compiled:
        model = torch.compile(model)  # type: ignore[assignment]
    if entry.name in OTHERS:
        return partial(OTHERS[entry.name], model, batches, optimizer, autocast)
    if entry.graph:
        return graphed_step(entry, model, batches, optimizer, autocast)
    return method_step(entry.name, model, batches, optimizer, autocast)


def graphed_step(
    entry: Entry,
    model: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    autocast: Autocast,
) -> Callable[[], object]:
    """The method's step as a CUDA graph."""
    raise NotImplementedError("the step as a CUDA graph")


def products(precision: str, device: str) -> AbstractContextManager[Any]:
    """Inside, float32 is multiplied as in a run with the option `--precision`."""
    if precision == "default":
        return nullcontext()
    chosen: Any = precision
    return float32_products(torch.device(device), chosen)
