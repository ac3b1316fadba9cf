"""Passes of one sample each."""

import pytest
import torch
from torch import nn

import gradsurgery as gs
from gradsurgery.gradients.conflict import sum_of


class ByHand(nn.Module):
    """A normalisation in elementary operations, which have no layouts to confuse."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias, self.norm = norm.weight, norm.bias, [norm]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (norm,) = self.norm
        if isinstance(norm, nn.BatchNorm2d):
            mean, variance = norm.running_mean, norm.running_var
        else:
            mean, variance = x.mean((2, 3)), x.var((2, 3), unbiased=False)
        mean, variance = (some.reshape(-1, x.shape[1], 1, 1) for some in (mean, variance))
        scale = self.weight.view(-1, 1, 1) / (variance + norm.eps).sqrt()
        return (x - mean) * scale + self.bias.view(-1, 1, 1)


class Tokens(nn.Module):
    """A convolution, a normalisation, and a linear layer on its places as tokens, as in LeViT."""

    def __init__(self, norm: nn.Module, layout: str) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.first = nn.Conv2d(2, 4, 2, dtype=torch.float64)
        self.norm, self.last = norm, nn.Linear(4, 3, dtype=torch.float64)
        self.layout = layout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x * self.scale.exp().view(-1, 1, 1)))
        if self.layout == "tokens":
            return self.last(x.flatten(2).transpose(1, 2).contiguous()).tanh().sum(1)
        weight = self.last.weight[..., None, None].contiguous(memory_format=torch.channels_last)
        return nn.functional.conv2d(x, weight, self.last.bias).tanh().sum((2, 3))


def gradients_by_hand(model, x):
    rows = []
    for i in range(len(x)):
        loss = model(x[i : i + 1]).square().sum()
        rows.append(torch.autograd.grad(loss, list(model.parameters())))
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


@pytest.mark.parametrize("layout", ["tokens", "channels last"])
@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.InstanceNorm2d])
def test_one_row_is_normalised_in_any_layout(kind, layout):
    torch.manual_seed(0)
    norm = kind(4, affine=True, dtype=torch.float64).eval()
    nn.init.normal_(norm.weight)
    if kind is nn.BatchNorm2d:
        norm.running_var.uniform_(0.5, 2)
    model, x = Tokens(norm, layout), torch.randn(3, 2, 5, 5, dtype=torch.float64)
    by_hand = Tokens(ByHand(norm), layout)
    by_hand.load_state_dict(model.state_dict(), strict=False)
    rows = gradients_by_hand(by_hand, x)
    gram = gs.gradient_gram(model, lambda output, _: output.square().sum(1), x, x)
    assert "Tokens" in gram.fallbacks
    assert "first" not in gram.fallbacks
    torch.testing.assert_close(gram.total, rows @ rows.T)
    batches = [(x[i : i + 1], None) for i in range(3)]
    found = gs.domain_conflict(model, lambda output, _: output.square().sum(), batches)
    torch.testing.assert_close(sum_of(found).gram, rows @ rows.T)
