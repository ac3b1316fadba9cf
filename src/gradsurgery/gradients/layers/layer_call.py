"""One call of a layer: how its parameters' gradients follow from its output's gradient."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from gradsurgery.gradients.inner_products import Gram, gram_in_spans, wide

Parameters = Mapping[str, Tensor]


class LayerCall(ABC):
    """One call of a layer whose output's first dimension has the samples in order.

    Each row of the output comes from the same row of the input and the parameters alone.

    inputs: what went into the layer, [rows, …]; rows is a multiple of the number of samples, e.g.
        windows or frames, each sample's next to one another.
    parameters: those to find gradients for, by their role: "weight", "bias".
    """

    step: int = 1
    """What spans of the first dimension of a weight are multiples of."""

    def __init__(self, inputs: Tensor, parameters: Parameters) -> None:
        self._input = inputs.detach()
        self._version = inputs._version
        self.parameters = parameters

    @property
    def input(self) -> Tensor:
        """The input, which must still be as it was."""
        if self._input._version != self._version:
            raise RuntimeError(
                f"the input of a layer, of shape {list(self._input.shape)}, was modified in place "
                "after the layer read it, so that its gradient cannot be computed"
            )
        return self._input

    @abstractmethod
    def rows(self, role: str, gradient: Tensor, samples: int, span: slice) -> Tensor:
        """The gradient per sample of `span` of the parameter: [samples, span, …].

        gradient: that of the layer's output, [rows, …].
        """

    def gram(self, role: str, gradient: Tensor, samples: int) -> Gram:
        """The inner products of the samples' gradients, by the cheaper of the exact ways."""
        return gram_in_spans(
            self.parameters[role].shape,
            samples,
            lambda span: self.rows(role, gradient, samples, span),
            step=self.step,
        )


def by_sample(tensor: Tensor, samples: int) -> Tensor:
    """[rows, …] as [samples, rows of each, …], in at least float32."""
    apart: Tensor = tensor.to(wide(tensor.dtype)).unflatten(0, (samples, -1))
    return apart


def positions(tensor: Tensor, samples: int) -> Tensor:
    """[rows, …, features] as [samples, positions, features], in at least float32."""
    return by_sample(tensor, samples).flatten(1, -2)
