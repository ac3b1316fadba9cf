"""Functions whose backward pass somebody has written, and which run passes of their own in it."""

import pytest
import torch
from torch import nn

import gradsurgery as gs
from gradsurgery.engine.graph import graph_of, what_is_behind
from gradsurgery.errors import ArgumentError


class Recomputed(torch.autograd.Function):
    """Runs a module without its graph, and anew in the backward pass, as reversible layers do."""

    @staticmethod
    def forward(ctx, x, module):
        ctx.module = module
        ctx.save_for_backward(x)
        with torch.no_grad():
            return module(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            output = ctx.module(x)
        torch.autograd.backward(output, gradient)
        return x.grad, None


class Cubed(torch.autograd.Function):
    """Keeps what it needs under a name that nodes of leaves have too."""

    @staticmethod
    def forward(ctx, x):
        ctx.variable = x
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        return 3 * ctx.variable**2 * gradient


class Recomputing(nn.Module):
    """`inner` is used `times`, and once more in the open where `seen`."""

    def __init__(self, *, times: int, seen: bool) -> None:
        super().__init__()
        self.first, self.inner, self.last = (nn.Linear(3, 3, dtype=torch.float64) for _ in "abc")
        self.times, self.seen = times, seen

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).tanh()
        for _ in range(self.times):
            x = Recomputed.apply(x, self.inner).sin()
        return self.last(self.inner(x) if self.seen else x)


MODELS = [(1, False), (2, False), (1, True)]


def gradients_one_by_one(model, losses):
    """[losses, params], by plain backward passes over the whole model."""
    rows = []
    for loss in losses:
        model.zero_grad()
        loss.backward()
        rows.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    model.zero_grad()
    return torch.stack(rows)


@pytest.mark.parametrize(("times", "seen"), MODELS)
@pytest.mark.parametrize("rule", [gs.Sum(), gs.AgrSum(), gs.ANDMask(), gs.PCGrad(), gs.Median()])
def test_gradients_that_come_in_parts_are_one_gradient_a_domain(times, seen, rule):
    torch.manual_seed(0)
    model = Recomputing(times=times, seen=seen)
    domains = torch.randn(2, 4, 3, dtype=torch.float64)
    expected = rule(gradients_one_by_one(model, (model(x).square().mean() for x in domains)))
    gs.backward((model(x).square().mean() for x in domains), model.parameters(), rule)
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("trained", ["first", "input"])
def test_such_a_function_runs_where_what_lies_behind_it_is_not_asked_for(trained):
    torch.manual_seed(0)
    model = Recomputing(times=1, seen=False)
    domains = torch.randn(2, 4, 3, dtype=torch.float64)
    if trained == "input":
        model.first = nn.Identity()
        domains = [x.clone().requires_grad_() for x in domains]
    expected = 0.0
    for x in domains:
        model.zero_grad()
        model(x).square().mean().backward()
        expected = expected + model.inner.weight.grad
    before = [p for p in [*model.first.parameters(), *domains] if p.requires_grad]
    for leaf in before:
        leaf.grad = torch.ones_like(leaf)
    model.inner.zero_grad()
    asked = list(model.inner.parameters())
    gs.backward((model(x).square().mean() for x in domains), asked, gs.Sum())
    torch.testing.assert_close(model.inner.weight.grad, expected)
    assert all((leaf.grad == 1).all() for leaf in before)


def test_parts_that_nothing_foretold_are_refused():
    weight = torch.ones(3, requires_grad=True)

    def loss():
        middle = weight * 2
        middle.register_hook(torch.enable_grad()(lambda g: (weight.sin() @ g).backward()))
        return middle.sum() + weight.sum()

    with pytest.raises(ArgumentError, match=r"domain 0 at parameter 0 comes in parts"):
        gs.backward((loss() for _ in range(2)), [weight], gs.AgrSum())
    gs.backward(([loss()] for _ in range(2)), [weight], gs.Sum())
    torch.testing.assert_close(weight.grad, 2 * (3 + weight.detach().cos()))


def test_what_lies_behind_a_loss():
    weight = torch.ones(3, requires_grad=True)
    layer = nn.Linear(3, 3)
    plain, own = layer(weight.sin()).sum(), Recomputed.apply(weight.sin(), layer).sum()
    found = what_is_behind(plain, "here")
    assert {*map(id, found.leaves)} == {id(weight), *map(id, layer.parameters())}
    assert not found.own_passes
    found = what_is_behind(own, "here")
    assert [leaf is weight for leaf in found.leaves] == [True]
    assert found.own_passes
    known = {type(node) for node in graph_of(own)}
    assert not what_is_behind(own, "here", known=known).own_passes


def test_a_function_that_has_a_variable_is_no_leaf():
    weight, beside = (torch.full((3,), 2.0, requires_grad=True) for _ in "ab")
    middle = weight + beside
    gs.backward([Cubed.apply(middle).sum() for _ in range(2)], [weight], gs.Sum())
    assert weight.grad.tolist() == [96.0] * 3  # 2 domains · 3 (2 + 2)²
    assert beside.grad is None
    found = what_is_behind(Cubed.apply(middle).sum(), "here").leaves
    assert {*map(id, found)} == {id(weight), id(beside)}


def test_a_loss_that_is_a_leaf_and_no_parameter_is_left_alone():
    weight, other = torch.ones((), requires_grad=True), torch.ones((), requires_grad=True)
    gs.backward([weight, other, weight * other], [weight], gs.Sum())
    assert weight.grad == 2
    assert other.grad is None


def test_what_torch_compiles_runs_no_pass_of_its_own():
    network = torch.compile(nn.Linear(2, 2), backend="aot_eager")
    loss = network(torch.ones(1, 2)).sum()
    assert any(type(node).__name__ == "CompiledFunctionBackward" for node in graph_of(loss))
    assert not what_is_behind(loss, "of domain 0").own_passes


def test_losses_that_share_a_pass_of_a_compiled_network():
    def losses():
        out = network(torch.tensor([[1.0, 2.0]]))
        return [out.sin().sum(), 3 * out.sin().sum()]

    layer = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    parameters = list(layer.parameters())
    network = torch.compile(layer, backend="aot_eager")
    losses()[0].backward()  # compiles a backward pass that gives up what it has used
    with pytest.raises(ArgumentError, match=r"domain 0 shares .* back from it once"):
        gs.backward(losses(), parameters, gs.AgrSum())
    torch._dynamo.reset()
    with torch._functorch.config.patch(donated_buffer=False):
        network = torch.compile(layer, backend="aot_eager")
        losses()[0].backward()
        layer.zero_grad()
        gs.backward(losses(), parameters, gs.AgrSum())
    expected = torch.autograd.grad(4 * layer(torch.tensor([[1.0, 2.0]])).sin().sum(), parameters)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
