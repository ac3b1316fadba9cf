"""Networks of one layer, whose right gradients can be written down."""

from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional

import gradsurgery as gs

ONE_TWO_THREE = torch.tensor([[1.0], [3.0], [2.0]])


class One(nn.Module):
    """A weight of 1, in whatever function of it and the samples."""

    def __init__(self, function, weight=1.0) -> None:
        super().__init__()
        self.l = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.l.weight, weight)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def diagonal(model, x, loss=lambda output, _: output.sum(1)) -> list[float]:
    return gs.gradient_gram(model, loss, x, torch.zeros(len(x))).total.diagonal().tolist()


class Mixing(nn.Linear):
    """Mixes the samples, drops out in training, and gives its output in some form."""

    def __init__(self, function, form=lambda z: z) -> None:
        super().__init__(4, 3)
        self.function, self.form = function, form

    def forward(self, x):
        h = functional.dropout(self.function(x), 0.5, self.training)
        return self.form(super().forward(h))


FORMS = {
    "tensor": (lambda z: z, lambda output: output),
    "tuple": (lambda z: (z, z.mean()), lambda output: output[0]),
    "dictionary": (lambda z: {"logits": z, "layers": [z]}, lambda output: output["layers"][0]),
    "object": (lambda z: SimpleNamespace(logits=z), lambda output: output.logits),
}
