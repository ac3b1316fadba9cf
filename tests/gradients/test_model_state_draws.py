"""Random numbers in the forward pass: each sample alone has its own."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import gradsurgery as gs
from gradsurgery.errors import ArgumentError
from tests.gradients.networks_by_hand import FORMS, Mixing, One, diagonal
from tests.gradients.oracle import cross_entropy


@pytest.mark.parametrize("form", FORMS)
def test_dropout_of_each_sample_and_outputs_in_any_form(form):
    """ℓ = Σ z for z = W (m ∘ x) / 0.5: every row of W has the gradient m ∘ x / 0.5."""
    wrap, unwrap = FORMS[form]
    model, x = Mixing(lambda x: x, wrap).train(), torch.randn(5, 4)
    model.bias.requires_grad_(False)
    torch.manual_seed(3)
    dropped = functional.dropout(x, 0.5)
    torch.manual_seed(3)
    gram = gs.gradient_gram(model, lambda z, _: unwrap(z).sum(1), x, x)
    torch.testing.assert_close(gram.total.float(), 3 * dropped @ dropped.T)


def test_dropout_as_accelerators_compute_it():
    """For z = w · (m ∘ x) / 0.25 the gradient is (m ∘ x) / 0.25."""
    x = torch.arange(1.0, 6)[:, None]
    for seed in range(3):
        torch.manual_seed(seed)
        mask = torch.native_dropout(x, 0.75, True)[1]
        model = One(lambda s, x: torch.native_dropout(s.l(x), 0.75, True)[0])
        torch.manual_seed(seed)
        assert diagonal(model, x) == (x * mask * 4).square().flatten().tolist()


def test_random_numbers_of_a_coarser_type_do_not_coarsen_the_check():
    """A sample alone is normalised with another ε: by 1e-6 of it, its gradient is another."""
    torch.manual_seed(0)
    norm = nn.LayerNorm(3).double()
    linear = nn.Linear(3, 3).double()

    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = linear, norm

        def forward(self, x):
            return self.norm(self.linear(x) / len(x)) * torch.rand(len(x), 1)

    x = torch.randn(2, 3, dtype=torch.float64)
    with pytest.raises(ArgumentError, match="see each other"):
        gs.gradient_gram(Halved(), lambda z, _: z[:, 0], x, x)


def test_the_size_of_the_batch_beside_dropout():
    model = Mixing(lambda x: x / len(x)).train()
    with pytest.raises(ArgumentError, match="see each other"):
        gs.gradient_gram(model, cross_entropy, torch.randn(3, 4), torch.tensor([0, 0, 1]))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x * torch.bernoulli(x.sigmoid()), "random numbers by bernoulli"),
        (lambda x: functional.rrelu(x, training=True), "random numbers by rrelu"),
        (
            lambda x: checkpoint(functional.dropout, x, use_reentrant=False),
            "random numbers inside torch.utils.checkpoint",
        ),
        (lambda x: x * torch.rand(len(x) + 1, 1)[1:], r"numbers of shape \[2, 1\] for sample"),
    ],
)
def test_random_numbers_that_cannot_be_given_to_a_sample_alone_are_refused(function, words):
    x, y = torch.randn(3, 4), torch.tensor([0, 0, 1])
    with pytest.raises(ArgumentError, match=words):
        gs.gradient_gram(Mixing(function).eval(), cross_entropy, x, y)
