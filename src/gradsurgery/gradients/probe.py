"""Where in a network the rows of a layer's input are the samples, one after the other.

A pass of two samples, the second of which is NaN: where the rows of the second half hold NaN and
those of the first do not, rows are samples and samples do not see each other.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradsurgery.gradients.embedding import EmbeddingUse
from gradsurgery.gradients.recorder import Interceptor, Sight, uncompiled
from gradsurgery.gradients.use import Use


class Probe(NamedTuple):
    """Every known use of the parameters in a pass, in order, and whether samples are mixed."""

    sights: list[Sight]
    mixed: bool


def probe(model: nn.Module, sample: Tensor, parameters: Iterable[Tensor]) -> Probe:
    """How a pass of `model` uses the parameters.

    sample: one sample, [1, …]. Where samples are whole numbers, an embedding with a row for each
        of two that are alike is taken to have theirs; after it NaN shows as elsewhere.

    The pass is in evaluation mode, so that it changes no running average and draws nothing.
    """
    pair = sample.detach().repeat(2, *[1] * (sample.ndim - 1))
    if pair.is_floating_point():
        pair[1] = torch.nan
    prober = _Prober(parameters, of_numbers=not pair.is_floating_point())
    with _evaluation_mode(model), torch.no_grad(), uncompiled():
        with prober:
            output = model(pair)
        # where a sample is NaN by itself, nothing is known about how it sees others
        mixed = _first_half_holds_nan(output) and not _first_half_holds_nan(
            model(torch.cat([sample, sample]))
        )
    return Probe(prober.sights, mixed)


class _Prober(Interceptor):
    def __init__(self, parameters: Iterable[Tensor], *, of_numbers: bool) -> None:
        super().__init__(parameters)
        self._of_numbers = of_numbers
        self.sights: list[Sight] = []

    def _run(
        self, use: Use, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        inputs = use.input
        even = inputs.ndim > 0 and len(inputs) % 2 == 0 and len(inputs) > 0
        if isinstance(use, EmbeddingUse):
            output = function(*args, **kwargs)
            # the two are alike, and so are not the numbers of their positions
            alike = even and len(inputs) == 2 and torch.equal(inputs[0], inputs[1])
            apart = self._of_numbers and alike
            if apart:
                output[1] = torch.nan
            self.sights.append(Sight.of(function, use, apart=apart))
            return output
        apart = even and _second_half_alone_is_nan(inputs)
        self.sights.append(Sight.of(function, use, apart=apart))
        return function(*args, **kwargs)


def _second_half_alone_is_nan(inputs: Tensor) -> bool:
    first, second = inputs.isnan().flatten().chunk(2)
    return bool(second.any()) and not bool(first.any())


def _first_half_holds_nan(output: object) -> bool:
    if not isinstance(output, Tensor) or output.ndim == 0:
        return False
    return bool(output[: len(output) // 2].isnan().any())


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    flags = [(layer, layer.training) for layer in model.modules()]
    try:
        for layer, _ in flags:
            layer.training = False
        yield
    finally:
        for layer, training in flags:
            layer.training = training
