"""Samples and losses that see each other are refused; losses and outputs come in any form."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradsurgery as gs
from gradsurgery.errors import ArgumentError
from tests.gradients.networks_by_hand import FORMS, Mixing, One, diagonal
from tests.gradients.oracle import cross_entropy


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x - x.mean(0),
        lambda x: x - x.mean(0).detach(),
        lambda x: x / x.abs().max().item(),
        lambda x: x[x[:, 0].argsort()],
        lambda x: x + x.flip(0).detach(),
        lambda x: functional.batch_norm(x, None, None, training=True),
        lambda x: x if bool((x[0] > 0).any()) else -x,
    ],
)
def test_samples_that_see_each_other_are_refused(function, training):
    torch.manual_seed(0)
    x = torch.randn(4, 4)
    x[0] = -x[0].abs() - 1
    with pytest.raises(ArgumentError, match=r"see each other|not on sample 0 alone"):
        gs.gradient_gram(Mixing(function).train(training), cross_entropy, x, torch.arange(4) % 3)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "loss",
    [
        lambda z, y: cross_entropy(z, y) / len(y),
        lambda z, y: cross_entropy(z, y) * (y == 0).sum(),
        lambda z, y: cross_entropy(z, y) * (y[:, None] == y).sum(1),  # 1 for the last sample
        lambda z, y: cross_entropy(z - z.mean(0), y),
        lambda z, y: cross_entropy(z, y) * z.detach().max(),
        lambda z, y: cross_entropy(z * torch.rand_like(z), y) / len(y),
        lambda z, y: -(z @ z.T).log_softmax(1).diagonal(),  # contrastive
    ],
)
def test_losses_that_see_each_other_are_refused(loss, form, training):
    torch.manual_seed(0)
    wrap, unwrap = FORMS[form]
    model = Mixing(lambda x: x, wrap).train(training)
    with pytest.raises(ArgumentError, match="or the loss"):
        gs.gradient_gram(
            model, lambda z, y: loss(unwrap(z), y), torch.randn(3, 4), torch.tensor([0, 0, 1])
        )


def test_losses_in_other_forms():
    x = torch.tensor([[1.0], [3.0]])
    model = One(lambda s, x: s.l(x))
    assert diagonal(model, x, lambda z, _: z.sum()) == [1, 9]
    assert diagonal(model, x, lambda z, _: z.sum(0)[0] if len(z) > 1 else z[0]) == [1, 9]
    assert diagonal(model, x[:1], lambda z, _: z.sum()) == [1]
    with pytest.raises(ArgumentError, match=r"expected shape \[2\] or a scalar, found \[1\]"):
        diagonal(model, x, lambda z, _: z.sum(0))
    named = One(lambda s, x: {"logits": s.l(x)})
    assert diagonal(named, x, lambda z, _: z["logits"].sum(1)) == [1, 9]
    assert diagonal(named, x, lambda z, _: z["logits"].sum()) == [1, 9]
    whole = One(lambda s, x: {"mean": s.l(x).mean()})
    with pytest.raises(ArgumentError, match=r"expected a tensor with 2 rows.*found dict"):
        diagonal(whole, x, lambda z, _: z["mean"])


def test_parameters_that_have_no_inner_products():
    x = torch.randn(2, 3)
    with pytest.raises(ArgumentError, match="call the model once"):
        gs.gradient_gram(nn.LazyLinear(2), cross_entropy, x, torch.tensor([0, 1]))
    with pytest.raises(ArgumentError, match="complex"):
        gs.gradient_gram(
            nn.Linear(3, 2, dtype=torch.complex64), cross_entropy, x, torch.tensor([0, 1])
        )
