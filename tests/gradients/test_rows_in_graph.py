"""Whether the graph keeps samples apart, against the derivative of every loss by every sample."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradsurgery.gradients.rows_in_graph import rows_stay_apart

N = 4  # as many samples as channels and as places, so that sizes alone tell nothing apart
WEIGHT = torch.rand(N, N)
KERNEL = torch.rand(N, N, 3, 3)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, x):
        return x * 2

    @staticmethod
    def backward(_ctx, gradient):
        return gradient * 2


def attention(x):
    stacked = torch.cat([x, x * 2, x + 1], -1).unflatten(-1, (3, N))
    query, key, value = stacked.permute(3, 0, 2, 1, 4).unbind()
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def windows(x):
    return (x.unflatten(2, (2, 2)).permute(0, 2, 1, 3, 4).flatten(0, 1) @ WEIGHT).softmax(-1)


APART = {
    "convolution": lambda x: functional.conv2d(x, KERNEL, padding=1).relu(),
    "pooling": lambda x: functional.max_pool2d(functional.avg_pool2d(x, 2, 1), 2),
    "batch norm": lambda x: functional.batch_norm(x, torch.ones(N), torch.ones(N)),
    "layer norm": lambda x: functional.layer_norm(x, (N, N)),
    "layer norm of all but the samples": lambda x: functional.layer_norm(x, (N, N, N)),
    "group norm": lambda x: functional.group_norm(x, 2),
    "linear": lambda x: functional.linear(x.flatten(1), torch.rand(3, N**3), torch.rand(3)),
    "linear on places": lambda x: functional.linear(x, WEIGHT, torch.rand(N)),
    "padded": lambda x: functional.pad(x, (1, -1, 1, -1)),
    "turned": lambda x: x.permute(2, -1, 0, 1).tanh().permute(2, 3, 0, 1),
    "turned twice": lambda x: x.transpose(0, -1).mT.contiguous().mT.transpose(-1, 0),
    "means": lambda x: x.mean((-1, -2)) + x.sum(1).amax(-1) + x.logsumexp((1, 2)),
    "kept means": lambda x: x / (x.norm(dim=1, keepdim=True) + x.mean((1, 2, 3), keepdim=True)),
    "parts": lambda x: torch.cat([x.unbind(1)[0], x[:, 1:, 2], x.split(1, 2)[1][:, :, 0]], 1),
    "rolled": lambda x: x.roll(1, -1),
    "attention": attention,
    "windows": windows,
    "views": lambda x: x.reshape(N * N, N, N).unsqueeze(0).view(N * N * N, N) @ WEIGHT,
    "excited": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "products": lambda x: torch.bmm(x.flatten(2), x.flatten(2).mT),
}
MIXED = {
    "mean": lambda x: x - x.mean(0),
    "kept mean": lambda x: x - x.mean(0, keepdim=True),
    "softmax": lambda x: x.softmax(0),
    "turned softmax": lambda x: x.transpose(0, 1).softmax(1).transpose(0, 1),
    "turned": lambda x: x.transpose(0, 1).contiguous(),
    "turned and viewed": lambda x: x.transpose(0, 1).reshape(N, -1),
    "transposed": lambda x: x.flatten(1)[:, :N].t(),
    "channels": lambda x: functional.conv2d(x.transpose(0, 1), KERNEL, padding=1).transpose(0, 1),
    "one sample of many channels": lambda x: functional.conv2d(
        x.reshape(1, N, N, N * N), KERNEL, padding=1
    )[0],
    "batch norm": lambda x: functional.batch_norm(x, None, None, training=True),
    "layer norm": lambda x: functional.layer_norm(x, x.shape),
    "weight of the samples": lambda x: functional.linear(x, x[:, 0, 0]),
    "kernel of the samples": lambda x: functional.conv2d(x, x, padding=1),
    "scale of the samples": lambda x: functional.layer_norm(x, (N,), x[:, 0, 0, 0]),
    "all pairs": lambda x: x.flatten(1) @ x.flatten(1).t(),
    "outer": lambda x: x[:, None, 0] + x[None, :, 0],
    "beside": lambda x: torch.cat([x, x])[2:-2],
    "first": lambda x: x + x[:1],
    "one for all": lambda x: x + x.select(0, 1),
    "parts": lambda x: torch.cat(x.split(2)[::-1]),
    "rolled": lambda x: x.roll(1, 0),
    "rolled over all": lambda x: x.roll(1),
    "shifted": lambda x: functional.pad(x, (0, 0, 0, 0, 0, 0, 1, -1)),
    "places": lambda x: x.flatten() * x.mT.flatten() + x.permute(3, 2, 1, 0).flatten(),
    "attention over samples": lambda x: functional.scaled_dot_product_attention(
        *[x.permute(1, 2, 0, 3)] * 3
    ).permute(2, 0, 1, 3),
    "attention with another mask": lambda x: functional.scaled_dot_product_attention(
        x, x, x, attn_mask=x.transpose(0, 1)
    ),
}


def losses_of(function, x):
    return function(x).reshape(N, -1).square().sum(1)


def is_apart(function) -> tuple[bool, bool]:
    """By the graph, and by the derivatives themselves."""
    torch.manual_seed(0)
    x = torch.randn(N, N, N, N, requires_grad=True)
    by_graph = rows_stay_apart(
        losses_of(function, x), N, lambda node: getattr(node, "variable", None) is x
    )
    matrix = torch.autograd.functional.jacobian(lambda x: losses_of(function, x), x)
    others = matrix.flatten(2).abs().amax(2).fill_diagonal_(0)
    return by_graph, not others.any()


@pytest.mark.parametrize("name", APART)
def test_networks_that_keep_samples_apart(name):
    assert is_apart(APART[name]) == (True, True)


@pytest.mark.parametrize("name", MIXED)
def test_networks_that_mix_them(name):
    assert is_apart(MIXED[name]) == (False, False)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[torch.arange(N)],  # indexing by data
        Doubled.apply,
        lambda x: x.flip(0).flip(0),
        lambda x: torch.stack(list(x)),
    ],
)
def test_what_is_not_known_is_not_taken_to_keep_them_apart(function):
    assert is_apart(function) == (False, True)


def test_weights_computed_from_weights_alone_do_not_matter():
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(N, N)).eval()
    assert is_apart(layer) == (True, True)
