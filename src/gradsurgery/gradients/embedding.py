"""Embeddings: rows of a table, picked by whole numbers."""

import torch
from torch import Tensor

from gradsurgery.gradients.products import PIECE, Gram, inner_products, wide
from gradsurgery.gradients.use import Parameters, Use


class EmbeddingUse(Use):
    """y_s = W[x_s]: sample i's gradient of row r is the sum of b_is where x_is = r."""

    def __init__(self, inputs: Tensor, parameters: Parameters, padding: int | None) -> None:
        super().__init__(inputs, parameters)
        self._padding = padding

    def rows(self, role: str, gradient: Tensor, samples: int, span: slice) -> Tensor:
        """The sums per sample."""
        length = len(self.parameters[role])
        return self._sums(gradient, samples, length, self.input)[:, span]

    def total(self, role: str, gradient: Tensor, part: slice) -> Tensor:
        """The sums over the part."""
        length = len(self.parameters[role])
        return self._sums(gradient[part], 1, length, self.input[part])[0]

    def gram(self, role: str, gradient: Tensor, samples: int) -> Gram:
        """Over the rows that any sample picks."""
        used, numbers = self.input.unique(return_inverse=True)
        width = gradient.shape[-1]
        block = max(PIECE // (samples * len(used)), 1)
        gradient = self._without_padding(gradient.to(wide(gradient.dtype)), self.input)
        parts = [
            inner_products(_summed(gradient[..., at : at + block], samples, len(used), numbers))
            for at in range(0, width, block)
        ]
        return torch.stack(parts).sum(0)

    def _sums(self, gradient: Tensor, samples: int, length: int, numbers: Tensor) -> Tensor:
        gradient = self._without_padding(gradient.to(wide(gradient.dtype)), numbers)
        return _summed(gradient, samples, length, numbers)

    def _without_padding(self, gradient: Tensor, numbers: Tensor) -> Tensor:
        if self._padding is None:
            return gradient
        return gradient.masked_fill((numbers == self._padding)[..., None], 0.0)


def _summed(gradient: Tensor, samples: int, length: int, numbers: Tensor) -> Tensor:
    """[samples, length, width]: the sum of each sample's gradients by number."""
    offsets = torch.arange(samples, device=numbers.device) * length
    places = (numbers.reshape(samples, -1) + offsets[:, None]).flatten()
    sums = gradient.new_zeros(samples * length, gradient.shape[-1])
    sums.index_add_(0, places, gradient.reshape(-1, gradient.shape[-1]))
    return sums.view(samples, length, -1)
