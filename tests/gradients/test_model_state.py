"""What `gradient_gram` leaves behind in a model: nothing."""

import random

import numpy as np
import pytest
import torch
from torch import nn

import gradsurgery as gs
from gradsurgery.errors import ArgumentError
from gradsurgery.gradients.model_state import unchanged
from tests.gradients.networks_by_hand import ONE_TWO_THREE, diagonal
from tests.gradients.oracle import cross_entropy


class Remembers(nn.Module):
    """Caches, counters and running values in every place where a network may keep them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 3))
        self.table = nn.Embedding(4, 2, max_norm=0.5)
        self.register_buffer("top", torch.zeros(()))
        self.cache = {}
        self.calls = 0
        self.history = [torch.zeros(2)]
        self.array = np.zeros(2)
        self.last = None
        self.draws = torch.Generator().manual_seed(3)
        self.unregistered = [nn.Dropout(0.0)]

    def forward(self, x):
        self.top = torch.maximum(self.top, x.detach().abs().max())
        self.history[0] += 1
        self.history.append(x)
        self.calls += 1
        self.array += 1
        self.last = x
        self.unregistered[0].p = 0.5
        self.cache["bias"] = self.cache.get("bias", torch.zeros(3)) + 1
        torch.rand((), generator=self.draws)
        random.random()
        np.random.rand()  # noqa: NPY002, because networks do
        self.linear.weight.register_hook(lambda gradient: gradient)
        self.train()
        x = x + self.table(x[:, 0].abs().long() % 4)
        return self.linear(x) + (self.cache["bias"] - 1)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_the_model_is_different_afterwards(fails):
    torch.manual_seed(0)
    model, x, y = Remembers().eval(), torch.randn(3, 2), torch.tensor([0, 1, 2])
    model.linear.parametrizations.weight.original.grad = kept = torch.ones(3, 2)
    table = model.table.weight.detach().clone()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    generators = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    draws = model.draws.get_state()

    def loss(z, y):
        if fails:
            raise RuntimeError("the loss fails")
        return cross_entropy(z, y)

    if fails:
        with pytest.raises(ArgumentError, match="the loss fails"):
            gs.gradient_gram(model, loss, x, y)
    else:
        gs.gradient_gram(model, loss, x, y)
    assert torch.equal(model.table.weight, table)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert (model.cache, model.calls, model.last, len(model.history)) == ({}, 0, None, 1)
    assert model.history[0].tolist() == [0, 0] == model.array.tolist()
    assert model.unregistered[0].p == 0
    assert not any(layer.training for layer in model.modules())
    assert model.linear.parametrizations.weight.original.grad is kept
    assert torch.equal(kept, torch.ones(3, 2))
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert np.random.get_state()[1].tolist() == generators[1]  # noqa: NPY002
    assert torch.equal(model.draws.get_state(), draws)


def test_what_python_and_numpy_draw_is_drawn_again():
    with unchanged(nn.Linear(1, 1)) as state:
        drawn = []
        for _ in range(3):  # the checks of types in tests draw before the first
            drawn.append((random.random(), np.random.rand(), float(torch.rand(()))))  # noqa: NPY002
            state.restore()
    assert drawn[1] == drawn[2]


def test_a_cache_filled_in_evaluation_mode_without_gradients_is_not_kept():
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.ones(1))
            self.cached = None

        def forward(self, x):
            if self.training:
                self.cached = None
                return x * self.bias.exp()
            if self.cached is None:
                self.cached = self.bias.exp()
            return x * self.cached

    model = Biased().eval()
    # ∂(x e^p)/∂p = x e^p, at p = 1
    e = float(torch.ones(()).exp())
    assert diagonal(model, ONE_TWO_THREE) == pytest.approx([e**2, 9 * e**2, 4 * e**2])
    assert model.cached is None
    assert diagonal(model.train(), ONE_TWO_THREE) == pytest.approx([e**2, 9 * e**2, 4 * e**2])
