"""Training steps to compare: a method of ours, and the same done by others.

Every step takes one batch per domain and ends with the optimiser. `autocast` is entered around
forward passes.
"""

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from rules import stacked_signs
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gradsurgery as gs
from gradsurgery.algorithms import build_method
from gradsurgery.backbones import Backbone, build_backbone, set_training_mode

Batches = list[tuple[Tensor, Tensor]]
Autocast = Callable[[], AbstractContextManager[Any]]
Optimizer = torch.optim.Optimizer
CLASSES = 7


def random_batches(
    domains: int, size: int, image_size: int = 224, device: torch.device | str = "cpu"
) -> Batches:
    """Images that are channels last on an accelerator, as the training loop makes them."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(domains):
        images = torch.randn(size, 3, image_size, image_size, generator=generator)
        labels = torch.randint(CLASSES, (size,), generator=generator)
        if torch.device(device).type != "cpu":
            images = images.to(device, memory_format=torch.channels_last)
        batches.append((images, labels.to(device)))
    return batches


def backbone(network: str, image_size: int = 224) -> Backbone:
    """The network with random weights, the same every time, batch normalisation frozen."""
    built = _built(network, image_size)
    return replace(built, model=deepcopy(built.model))


@cache
def _built(network: str, image_size: int) -> Backbone:
    built = build_backbone(network, classes=CLASSES, weights="none", seed=0, image_size=image_size)
    set_training_mode(built.model, "frozen")
    return built


def untrained(network: str, image_size: int = 224, device: torch.device | str = "cpu") -> nn.Module:
    """Its model alone."""
    return backbone(network, image_size).model.to(device)


def adam(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return torch.optim.Adam(parameters, lr=1e-5, weight_decay=5e-5, fused=True)


def method_step(
    name: str,
    model: nn.Module,
    batches: Batches,
    optimizer: Optimizer,
    autocast: Autocast = nullcontext,
) -> Callable[[], object]:
    """The step of one of our methods."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(0)
    method = build_method(name, generator=generator, make_optimizer=adam)
    return lambda: method.step(model, batches, optimizer, step=1, autocast=autocast)


def own_loop(
    model: nn.Module, batches: Batches, optimizer: Optimizer, autocast: Autocast = nullcontext
) -> None:
    """`gradsurgery.backward` in a loop of the user's own."""
    optimizer.zero_grad()
    gs.backward(losses_of(model, batches, autocast), model.parameters(), gs.AgrSum())
    optimizer.step()


def losses_of(model: nn.Module, batches: Batches, autocast: Autocast) -> Iterator[Tensor]:
    for images, labels in batches:
        with autocast():
            yield cross_entropy(model(images), labels)


def passes(
    model: nn.Module, batches: Batches, optimizer: Optimizer, autocast: Autocast = nullcontext
) -> None:
    """The least that any surgery needs: D forward and backward passes, and the optimiser."""
    parameters = list(model.parameters())
    optimizer.zero_grad()
    for loss in losses_of(model, batches, autocast):
        for parameter in parameters:
            parameter.grad = None
        loss.backward(inputs=parameters)
    optimizer.step()


def pooled(
    model: nn.Module, batches: Batches, optimizer: Optimizer, autocast: Autocast = nullcontext
) -> None:
    """The loop that everybody writes: one pass over the images of all domains."""
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    optimizer.zero_grad()
    with autocast():
        loss = cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()


def published(
    model: nn.Module, batches: Batches, optimizer: Optimizer, autocast: Autocast = nullcontext
) -> None:
    """Agr-Sum as its authors' code works: a flat stored gradient a domain, then whole tensors."""
    flat = []
    parameters = list(model.parameters())
    losses = losses_of(model, batches, autocast)
    model.zero_grad()
    for loss in losses:
        loss.backward()
        flat.append(torch.cat([p.grad.clone().flatten() for p in parameters]))
        model.zero_grad()
    update = stacked_signs(torch.stack(flat))
    sizes = [p.numel() for p in parameters]
    for parameter, part in zip(parameters, update.split(sizes), strict=True):
        parameter.grad = part.view_as(parameter)
    optimizer.step()


def torchjd_pcgrad(
    model: nn.Module, batches: Batches, optimizer: Optimizer, autocast: Autocast = nullcontext
) -> None:
    """TorchJD's PCGrad."""
    from torchjd import autojac
    from torchjd.aggregation import PCGrad

    losses = list(losses_of(model, batches, autocast))
    model.zero_grad()
    if hasattr(autojac, "jac_to_grad"):
        autojac.backward(losses)
        autojac.jac_to_grad(model.parameters(), PCGrad())
    else:
        autojac.backward(losses, PCGrad())
    optimizer.step()


OTHERS: dict[str, Callable[..., None]] = {
    "user's loop: agr-sum": own_loop,
    "plain: D passes": passes,
    "plain: pooled": pooled,
    "as published: agr-sum": published,
}
if importlib.util.find_spec("torchjd"):
    OTHERS["TorchJD: PCGrad"] = torchjd_pcgrad
