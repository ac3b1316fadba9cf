"""The steps that are measured on a GPU: method, precision, memory layout, graph."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from contestants import OTHERS, Autocast, Batches, adam, backbone, untrained

import gradsurgery as gs
from gradsurgery.training.cuda_graph import GraphedSteps
from gradsurgery.training.device import float32_products
from gradsurgery.training.learner import build_learner

METHODS = ("deep-all", "agr-sum", "agr-rand", "pcgrad")


@dataclass(frozen=True)
class Entry:
    """One contestant.

    precision: "default" is torch's own, TF32 in convolutions and float32 in matrix products.
    in_turn: with a graph, in which the domains' passes do not run beside one another.
    """

    name: str
    precision: str = "default"
    channels_last: bool = False
    graph: bool = False
    compiled: bool = False
    in_turn: bool = False

    @property
    def label(self) -> str:
        """How it is called in tables."""
        extras = [
            "" if self.precision == "default" else self.precision,
            "channels last" if self.channels_last else "",
            "graph" if self.graph else "",
            "compiled" if self.compiled else "",
            "passes in turn" if self.in_turn else "",
        ]
        return ", ".join([self.name, *filter(None, extras)])


def entries_of(device: str, *, compiled: bool) -> list[list[Entry]]:
    """Groups whose entries take turns; a processor has no graphs."""
    if compiled:
        return [[Entry("plain: pooled", "bfloat16", channels_last=True, compiled=True)]]
    others = [name for name in ("as published: agr-sum", "TorchJD: PCGrad") if name in OTHERS]
    default = [Entry(name) for name in (*METHODS, *others, "plain: pooled", "plain: D passes")]
    default += [Entry(name, graph=True) for name in METHODS]
    default += [Entry(name, graph=True, in_turn=True) for name in ("agr-sum", "pcgrad")]
    groups = [default]
    for precision in ("bfloat16", "tf32"):
        names = (*METHODS[:2], "pcgrad", "plain: pooled", "as published: agr-sum")
        # the published code lays its gradients out one way, which the fused optimiser refuses here
        group = [
            Entry(name, precision, channels_last=not name.startswith("as published"))
            for name in names
        ]
        group += [Entry(name, precision, True, graph=True) for name in names[:3]]
        group.append(Entry("agr-sum", precision, True, graph=True, in_turn=True))
        groups.append(group)
    return [[entry for entry in group if device == "cuda" or not entry.graph] for group in groups]


def prepared(
    entry: Entry, network: str, batches: Batches, image_size: int, device: str
) -> Callable[[], object]:
    """The entry's step, on a model of its own."""
    ours = entry.name not in OTHERS
    with products(entry, device):
        step = (_our_step if ours else _other_step)(entry, network, batches, image_size, device)

    def run() -> None:
        with products(entry, device):
            step()

    return run


def _other_step(
    entry: Entry, network: str, batches: Batches, image_size: int, device: str
) -> Callable[[], object]:
    model: Any = untrained(network, image_size, device)
    if entry.channels_last:
        model = model.to(memory_format=torch.channels_last)
    autocast: Autocast = nullcontext
    if entry.precision in ("bfloat16", "float16"):
        autocast = partial(torch.autocast, device, dtype=getattr(torch, entry.precision))
    optimizer = adam(model.parameters())
    if entry.compiled:
        model = torch.compile(model)
    return partial(OTHERS[entry.name], model, batches, optimizer, autocast)


def _our_step(
    entry: Entry, network: str, batches: Batches, image_size: int, device: str
) -> Callable[[], object]:
    """As a run takes it; as a graph, it is replayed from here on."""
    configuration = gs.RunConfiguration(
        data="random",
        target="none",
        method=entry.name,
        backbone=network,
        weights="none",
        batch_norm="frozen",
        precision="float32" if entry.precision == "default" else entry.precision,
        channels_last="on" if entry.channels_last else "off",
        cuda_graph="on" if entry.graph else "off",
        device=device,
    )
    built = backbone(network, image_size)
    learner = build_learner(configuration, built, torch.device(device))
    for generator in (learner.generator, learner.host_generator):
        generator.manual_seed(0)

    steps = GraphedSteps(learner, configuration.cuda_graph, side_by_side=not entry.in_turn)
    for _ in range(8 if entry.graph else 0):
        steps.take(batches, 1)
    if entry.graph and not (steps.replays and steps.side_by_side != entry.in_turn):
        raise RuntimeError("the step is not replayed, or its passes not side by side")
    return lambda: steps.take(batches, 1)


@contextmanager
def products(entry: Entry, device: str) -> Iterator[None]:
    """Inside, float32 is multiplied as in a run with the option `--precision`.

    As in a run, a graph is of algorithms that give the same bits every time.
    """
    chosen: Any = entry.precision
    default = nullcontext() if chosen == "default" else None
    deterministic = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = entry.graph
    try:
        with default or float32_products(torch.device(device), chosen):
            yield
    finally:
        torch.backends.cudnn.deterministic = deterministic
