"""Forward passes: one per domain, or one over the pooled images."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gradsurgery.algorithms.base import Autocast
from gradsurgery.algorithms.objectives import Forward
from gradsurgery.algorithms.objectives.base import Logits
from gradsurgery.errors import ArgumentError


class DomainPasses(Forward):
    """One pass per domain, made when its logits are asked for."""

    def __init__(self, model: nn.Module, autocast: Autocast) -> None:
        self.model = model
        self._autocast = autocast

    def __call__(self, images: Sequence[Tensor]) -> Iterator[Logits]:
        """The logits of each domain's images."""
        return (self._pass(part).float() for part in images)

    def with_head_inputs(self, images: Sequence[Tensor]) -> Iterator[tuple[Tensor, Logits]]:
        """What goes into the last linear layer, and the logits."""
        for part in images:
            with head_inputs(self.model) as inputs:
                logits = self._pass(part).float()
            yield inputs[-1].float(), logits

    def _pass(self, images: Tensor) -> Tensor:
        with self._autocast():
            logits: Tensor = self.model(images)
        return logits


class PooledPass(DomainPasses):
    """One pass over the images of all domains, whose logits are then handed out by domain."""

    def __call__(self, images: Sequence[Tensor]) -> Iterator[Logits]:
        """The logits of each domain's images."""
        logits = self._pass(torch.cat(list(images))).float()
        return iter(logits.split([len(part) for part in images]))

    def with_head_inputs(self, images: Sequence[Tensor]) -> Iterator[tuple[Tensor, Logits]]:
        """What goes into the last linear layer, and the logits."""
        sizes = [len(part) for part in images]
        ((inputs, logits),) = super().with_head_inputs([torch.cat(list(images))])
        return zip(inputs.split(sizes), logits.split(sizes), strict=True)


@contextmanager
def head_inputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, every pass appends what goes into the model's last linear layer."""
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise ArgumentError(
            f"{type(model).__name__} has no linear layer, which fishr needs as its last; choose "
            "another backbone or method"
        )
    seen: list[Tensor] = []
    handle = linear[-1].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    try:
        yield seen
    finally:
        handle.remove()
