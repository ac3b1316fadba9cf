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

    def __init__(
        self, model: nn.Module, autocast: Autocast, scaler: torch.amp.GradScaler | None = None
    ) -> None:
        self.model = model
        self._autocast = autocast
        self._scaler = scaler

    @property
    def loss_scale(self) -> float:
        """The loss scaler's factor."""
        return 1.0 if self._scaler is None else self._scaler.get_scale()

    def __call__(self, images: Sequence[Tensor]) -> Iterator[Logits]:
        """The logits of each domain's images."""
        return (widened(self._pass(part)) for part in images)

    def with_head_inputs(self, images: Sequence[Tensor]) -> Iterator[tuple[Tensor, Logits]]:
        """What goes into the last linear layer, and the logits."""
        for part in images:
            with head_inputs(self.model) as seen:
                logits = self._pass(part)
            inputs, outputs = seen[-1]
            if outputs is not logits:
                raise ArgumentError(
                    f"the last linear layer of {type(self.model).__name__} does not give its "
                    "logits, which fishr needs; choose another backbone or method"
                )
            yield widened(inputs), widened(logits)

    def _pass(self, images: Tensor) -> Tensor:
        with self._autocast():
            logits: Tensor = self.model(images)
        return logits


class PooledPass(DomainPasses):
    """One pass over the images of all domains, whose logits are then handed out by domain."""

    def __call__(self, images: Sequence[Tensor]) -> Iterator[Logits]:
        """The logits of each domain's images."""
        logits = widened(self._pass(torch.cat(list(images))))
        return iter(logits.split([len(part) for part in images]))

    def with_head_inputs(self, images: Sequence[Tensor]) -> Iterator[tuple[Tensor, Logits]]:
        """What goes into the last linear layer, and the logits."""
        sizes = [len(part) for part in images]
        ((inputs, logits),) = super().with_head_inputs([torch.cat(list(images))])
        return zip(inputs.split(sizes), logits.split(sizes), strict=True)


def widened(tensor: Tensor) -> Tensor:
    """The tensor in at least float32: what autocast made narrower is too coarse for a loss."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@contextmanager
def head_inputs(model: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Inside, every pass appends what goes into the model's last linear layer and what comes out.

    Raises `ArgumentError` for a model without one.
    """
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise ArgumentError(
            f"{type(model).__name__} has no linear layer, which fishr needs as its last; choose "
            "another backbone or method"
        )
    seen: list[tuple[Tensor, Tensor]] = []

    def note(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((arguments[0], output))

    handle = linear[-1].register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()
