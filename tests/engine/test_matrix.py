"""Rules that are nothing but a function of the matrix, in `gradsurgery.backward`."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import gradsurgery as gs
from gradsurgery.errors import ArgumentError


class Recorded(gs.Rule):
    """Keeps what it is called with, and gives the last domain's gradient."""

    name = "recorded"

    def __call__(self, gradients):
        self.seen = gradients.clone()
        return gradients[-1]


class Wrong(gs.Rule):
    name = "wrong"

    def __call__(self, gradients):
        return gradients.reshape(-1)


@pytest.mark.parametrize("domains", [2, 4, 5, 9])
def test_the_matrix_has_a_row_a_domain_and_a_column_a_component(domains):
    first, second = torch.ones(2, requires_grad=True), torch.ones(1, 2, requires_grad=True)
    rows = torch.arange(4.0 * domains).reshape(domains, 4)
    rule = Recorded()
    losses = ((row[:2] @ first) + (row[2:] * second).sum() for row in rows)
    result = gs.backward(losses, [first, second], rule)
    assert torch.equal(rule.seen, rows)
    assert first.grad.tolist() == rows[-1, :2].tolist()
    assert second.grad.tolist() == [rows[-1, 2:].tolist()]
    assert (result.agreeing, result.cosines) == (None, None)


def test_a_parameter_that_no_domain_reaches_is_no_column():
    first, unused, last = (torch.ones(2, requires_grad=True) for _ in range(3))
    rule = Recorded()
    gs.backward([first.sum() + 2 * last.sum(), 3 * last.sum()], [first, unused, last], rule)
    assert rule.seen.tolist() == [[1, 1, 2, 2], [0, 0, 3, 3]]
    assert unused.grad is None
    assert (first.grad.tolist(), last.grad.tolist()) == ([0, 0], [3, 3])


def test_parameters_of_several_precisions_share_the_widest():
    half, single = torch.ones(1, dtype=torch.bfloat16), torch.ones(1)
    half.requires_grad_(), single.requires_grad_()
    rule = Recorded()
    gs.backward((f * (half.float() + single).sum() for f in (1.0, 2.0)), [half, single], rule)
    assert rule.seen.dtype == torch.float32
    assert (half.grad.dtype, half.grad.item()) == (torch.bfloat16, 2.0)
    assert (single.grad.dtype, single.grad.item()) == (torch.float32, 2.0)


def test_layouts_are_kept():
    weight = torch.zeros(3, 2).T.requires_grad_()
    factors = torch.arange(6.0).reshape(2, 3)
    gs.backward(((weight * f * factors).sum() for f in (1.0, 2.0)), [weight], gs.Median())
    assert torch.equal(weight.grad, 1.5 * factors)
    assert weight.grad.stride() == weight.stride()


def test_what_cannot_work_is_said():
    weight = torch.ones(2, requires_grad=True)
    losses = [weight.sum(), weight.sum()]
    with pytest.raises(
        ArgumentError, match=r"rule wrong .* expected a tensor of shape \[2\], found \[4\]"
    ):
        gs.backward(losses, [weight], Wrong())
    elsewhere = nn.Parameter(torch.ones(2, device="meta"))
    with pytest.raises(ArgumentError, match="found parameters on cpu, meta; put the model on one"):
        gs.backward([weight.sum(), weight.sum()], [weight, elsewhere], Recorded())
    assert weight.grad is None


class Integers(TorchDispatchMode):
    """Notes the size of the largest tensor of whole numbers that is made inside."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.dtype == torch.int64:
            self.largest = max(self.largest, made.numel())
        return made


def test_what_a_rule_with_a_memory_sees_is_counted_without_a_number_for_each_component():
    weights = [torch.zeros(size, requires_grad=True) for size in (40, 60)]
    with Integers() as integers:
        losses = [sum((w * sign).sum() for w in weights) for sign in (1.0, 2.0)]
        result = gs.backward(losses, weights, gs.AgrEMA())
        assert result.agreeing_by_parameter == {"0": 1.0, "1": 1.0}
    assert integers.largest <= 4


@pytest.mark.parametrize("kernels", [None, "accelerator", "without_triton"])
def test_a_rule_with_a_memory_counts_beside_parameters_without_components(kernels, request):
    if kernels is not None:
        request.getfixturevalue(kernels)
    empty = torch.zeros(0, 3, requires_grad=True)
    weight = torch.ones(2, requires_grad=True)
    for parameters in ([empty, weight], [weight, empty], [empty]):
        losses = [sum((factor * p).sum() for p in parameters) for factor in (1.0, 2.0)]
        weight.grad = None
        result = gs.backward(losses, parameters, gs.AgrEMA())
        agreeing = 1.0 if len(parameters) > 1 else None
        assert result.agreeing == agreeing
        assert weight.grad is None or weight.grad.tolist() == [3.0, 3.0]
