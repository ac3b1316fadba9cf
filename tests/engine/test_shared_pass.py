"""Losses that share one forward pass: lists of losses through one graph, against autograd."""

import gc
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import gradsurgery as gs
from gradsurgery.errors import ArgumentError
from tests.engine.models import MODELS, domain_batches

RULES = ["sum", "agr-sum", "pcgrad", "median"]


class Tasks(nn.Module):
    """A trunk with three heads; the third stands on a branch of its own beside the trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4), nn.Tanh())
        self.branch = nn.Linear(5, 4)
        self.heads = nn.ModuleList(nn.Linear(4, size) for size in (1, 3, 2))

    def losses(self, x: torch.Tensor) -> list[torch.Tensor]:
        shared = self.trunk(x)
        first, second = self.heads[0](shared), self.heads[1](shared)
        third = self.heads[2](shared + self.branch(x))
        labels = torch.arange(len(x)) % 3
        return [mse_loss(first[:, 0], x[:, 0]), cross_entropy(second, labels), third.square().sum()]


def network() -> Tasks:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tasks().double()


def inputs() -> torch.Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).double()


def matrix(model: nn.Module, losses) -> torch.Tensor:
    """The gradients by autograd, zeros where a loss does not reach, frozen parameters left out."""
    trained = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for loss in losses:
        found = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
        filled = [
            torch.zeros_like(p) if g is None else g for p, g in zip(trained, found, strict=True)
        ]
        rows.append(torch.cat([gradient.reshape(-1) for gradient in filled]))
    return torch.stack(rows)


def grad(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.requires_grad])


def seeded(rule: str) -> gs.Rule:
    return gs.rule(rule, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("form", [list, tuple, torch.stack])
@pytest.mark.parametrize("frozen", [None, "trunk.0", "heads.1"])
@pytest.mark.parametrize("rule", RULES)
def test_several_heads_on_one_trunk(rule, frozen, form):
    model = network()
    if frozen is not None:
        model.get_submodule(frozen).requires_grad_(False)
    expected = seeded(rule)(matrix(model, model.losses(inputs())))
    losses = model.losses(inputs())
    result = gs.backward(form(losses), model.parameters(), seeded(rule))
    torch.testing.assert_close(grad(model), expected)
    assert torch.equal(result.losses, torch.stack(losses).detach())


@pytest.mark.parametrize("rule", RULES)
def test_domains_of_one_pooled_batch_with_batch_normalisation(rule):
    model = MODELS["cnn-batch-norm"]().double()
    batches = [(x.double(), y) for x, y in domain_batches(3)]

    def losses():
        logits = model(torch.cat([x for x, _ in batches])).split(4)
        return [cross_entropy(z, y) for z, (_, y) in zip(logits, batches, strict=True)]

    expected = seeded(rule)(matrix(model, losses()))
    gs.backward(losses(), model.parameters(), seeded(rule))
    torch.testing.assert_close(grad(model), expected)


@pytest.mark.parametrize("rule", RULES)
def test_micro_batches_of_one_pass(rule):
    model = network()
    first, second, third = model.losses(inputs())
    expected = seeded(rule)(matrix(model, [first + third, second, third]))
    first, second, third = model.losses(inputs())
    gs.backward([[first, third], second, (third,)], model.parameters(), seeded(rule))
    torch.testing.assert_close(grad(model), expected)
    first, second, third = model.losses(inputs())
    model.zero_grad()
    gs.backward([iter([first, third]), second, third], model.parameters(), seeded(rule))
    torch.testing.assert_close(grad(model), expected)


@pytest.mark.parametrize("rule", ["agr-sum", "pcgrad"])
def test_a_gradient_scaler(rule):
    model, scaler = network().float(), torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    images = inputs().float()
    expected = seeded(rule)(matrix(model, model.losses(images)))
    gs.backward(model.losses(images), model.parameters(), seeded(rule), scaler=scaler)
    scaler.unscale_(optimizer)
    torch.testing.assert_close(grad(model), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rule", ["sum", "pcgrad"])
def test_autocast(rule):
    model, images = network().float(), inputs().float()
    expected = seeded(rule)(matrix(model, model.losses(images)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.losses(images)
    gs.backward(losses, model.parameters(), seeded(rule))
    assert (grad(model) - expected).norm() < 0.02 * expected.norm()


def test_separate_passes_in_a_list_free_their_graphs():
    """What no later loss goes through is freed by its own pass, though the list lives on."""
    alive = []

    class Kept(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            saved = x * 2
            ctx.save_for_backward(saved)
            alive.append(weakref.ref(saved))
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    weight = torch.ones(3, requires_grad=True)
    losses = [Kept.apply(weight).sum() for _ in range(2)]
    gs.backward(losses, [weight], gs.Sum())
    gc.collect()
    assert [ref() for ref in alive] == [None, None]
    shared = Kept.apply(weight)
    losses = [shared.sum(), shared.square().sum()]
    gs.backward(losses, [weight], gs.Sum())
    gc.collect()
    assert alive[-1]() is None


def test_a_vector_of_losses_of_separate_passes():
    weight = torch.zeros(2, requires_grad=True)
    rows = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    result = gs.backward(torch.stack([row @ weight for row in rows]), [weight], gs.AgrSum())
    assert weight.grad.tolist() == [4.0, 0.0]
    assert result.losses.tolist() == [0.0, 0.0]


def test_a_graph_that_was_used_up_before():
    weight = torch.ones(2, requires_grad=True)
    losses = [weight.square().sum() for _ in range(2)]
    losses[1].backward()
    with pytest.raises(ArgumentError, match="domain 1 is used up already, by a backward pass"):
        gs.backward(losses, [weight], gs.AgrSum())


@pytest.mark.parametrize("place", ["first", "middle", "shared"])
def test_reentrant_checkpoints_are_refused_with_the_cure(place):
    from torch.utils.checkpoint import checkpoint

    first, second = nn.Linear(3, 3), nn.Linear(3, 1)

    def losses(reentrant):
        for factor in (1.0, 2.0):
            x = torch.full((2, 3), factor, requires_grad=True)
            if place == "first":
                hidden = checkpoint(first, x, use_reentrant=reentrant)
            elif place == "middle":
                hidden = checkpoint(nn.Tanh(), first(x), use_reentrant=reentrant)
            else:  # used outside the checkpoint too
                hidden = first(x) + checkpoint(first, x, use_reentrant=reentrant)
            yield second(hidden).sum()

    parameters = [*first.parameters(), *second.parameters()]
    with pytest.raises(ArgumentError, match=r"domain 0 .*use_reentrant=True.*use_reentrant=False"):
        gs.backward(losses(True), parameters, gs.Sum())
    gs.backward(losses(False), parameters, gs.Sum())
    expected = torch.autograd.grad(sum(losses(False)), parameters)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


OTHER_FORMS = """
import torch, gradsurgery as gs

class ModelOutput(dict):  # as Hugging Face's models give it
    loss = torch.ones((), requires_grad=True)

weight = torch.ones(2, requires_grad=True)
for losses in (
    [weight.sum(), None],
    [1.0, 2.0],
    [ModelOutput(loss=1)],
    ModelOutput(loss=1),
    [{"loss": weight.sum()}],
    torch.ones(2, 2) * weight.sum(),
    3.0,
):
    try:
        gs.backward(losses, [weight], gs.Sum())
    except gs.ArgumentError as error:
        print(error)
"""


def test_losses_of_other_forms():
    # in a process of its own, where no type is checked before ours are
    command = [sys.executable, "-c", OTHER_FORMS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    words = [
        "of domain 1 is a tensor with one value, found NoneType; give what the criterion returns",
        "of domain 0 is a tensor with one value, found float; give what the criterion returns, w",
        "loss of domain 0 is a tensor with one value, found a ModelOutput; give its .loss",
        "losses are one scalar per source domain, found a ModelOutput; give its .loss",
        "loss of domain 0 is a tensor with one value, found dict",
        "loss of domain 0 is a tensor with one value, found shape [2]; reduce it",
        "losses are one scalar per source domain, found float",
    ]
    for line, expected in zip(done.stdout.splitlines(), words, strict=True):
        assert expected in line


def test_losses_of_one_element_and_of_none():
    weight = torch.ones(2, requires_grad=True)
    result = gs.backward([weight.sum(0, keepdim=True), weight.sum()], [weight], gs.Sum())
    assert result.losses.tolist() == [2.0, 2.0]
    result = gs.backward([weight[:1], weight[1:]], [weight], gs.Sum())
    assert result.losses.shape == (2,)


def test_a_function_is_a_rule():
    weight = torch.zeros(2, requires_grad=True)
    rows = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    gs.backward((row @ weight for row in rows), [weight], lambda gradients: gradients.amax(0))
    assert weight.grad.tolist() == [3.0, 4.0]
    with pytest.raises(ArgumentError, match=r"<lambda> gives one component per column"):
        gs.backward([weight.sum()] * 2, [weight], lambda gradients: gradients)
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(ArgumentError, match="make a function whose update is scaled"):
        gs.backward([weight.sum()] * 2, [weight], torch.sum, scaler=scaler)
