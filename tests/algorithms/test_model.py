"""What a step leaves on a model: nothing but its parameters; and batch normalisation."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from gradsurgery.algorithms import METHODS, OBJECTIVES, OTHER_METHODS
from gradsurgery.backbones import set_training_mode
from gradsurgery.errors import ArgumentError, NonFiniteError
from tests.algorithms import oracles
from tests.engine.models import MODELS, domain_batches

ALL = [*METHODS, *OTHER_METHODS, "fishr+agr-sum", "mldg+agr-sum", "gradnorm+pcgrad"]
SHAPING = [name for name, objective in OBJECTIVES.items() if objective.shapes_features]


def hooks_on(model: nn.Module) -> list[str]:
    owners = [*model.named_modules(), *model.named_parameters()]
    kinds = ["_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"]
    kinds.append("_post_accumulate_grad_hooks")
    return [f"{name}{kind}" for name, at in owners for kind in kinds if getattr(at, kind, None)]


class Cosine(nn.Linear):
    """Logits by a formula of its own."""

    def forward(self, features):
        return nn.functional.normalize(features) @ nn.functional.normalize(self.weight).T


class InPlace(nn.Sequential):
    """Changes what its last layer gives, which stays the same tensor."""

    def forward(self, images):
        return super().forward(images).mul_(2)


class Failing(nn.Module):
    """Passes on what it gets until the given pass, which raises."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if not self.left:
            raise RuntimeError("out of memory, say")
        return x


@pytest.mark.parametrize("name", ALL)
def test_no_hook_remains_after_a_step(name, built):
    model = oracles.network()
    built(name).step(model, oracles.batches(3), oracles.sgd(model.parameters()), step=1)
    assert hooks_on(model) == []


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("place", [0, 4])
@pytest.mark.parametrize("name", ALL)
def test_no_hook_remains_after_a_pass_that_raises(name, place, at, built):
    layers = list(oracles.network())
    layers.insert(place, Failing(at))
    model = nn.Sequential(*layers)
    algorithm = built(name, batch_norm="per-domain")
    with pytest.raises(RuntimeError, match="out of memory"):
        algorithm.step(model, oracles.batches(3), oracles.sgd(model.parameters()), step=1)
    assert hooks_on(model) == []
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["mldg", "mldg+agr-sum", "mldg+pcgrad"])
def test_mldg_is_back_at_its_parameters_when_it_raises(name, built):
    model, data = oracles.network(), oracles.batches(3)
    passes = 0

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        passes += 1
        if passes == 4:  # the meta-test loss of the second pair
            raise RuntimeError("in the backward pass")
        return gradient

    handle = model[-1].bias.register_hook(spoil)
    before = oracles.flat_parameters(model)
    with pytest.raises(RuntimeError, match="in the backward pass") as caught:
        built(name).step(model, data, oracles.sgd(model.parameters()), step=1)
    handle.remove()
    assert caught.traceback  # holds the frames, which is no reason to stay at θ'
    assert torch.equal(oracles.flat_parameters(model), before)
    assert hooks_on(model) == []


@pytest.mark.parametrize("name", ALL)
def test_frozen_parameters_stay(name, built):
    model = oracles.network()
    model[1].weight.requires_grad_(False)
    before = oracles.flat_parameters(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    for step in (1, 2):
        built(name).step(model, oracles.batches(3), oracles.sgd(trained), step=step)
    size = model[1].weight.numel()
    after = oracles.flat_parameters(model)
    assert torch.equal(after[:size], before[:size])
    assert not torch.equal(after[size:], before[size:])


@pytest.mark.parametrize("name", SHAPING)
@pytest.mark.parametrize("frozen", [True, False])
def test_a_penalty_on_features_that_nothing_makes_is_refused(name, frozen, built):
    """Layers that are frozen by hand, and a network that is its last layer alone."""
    model = oracles.network()
    model[1].requires_grad_(False)
    if not frozen:
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double()
    method, data, optimizer = built(name), oracles.batches(3), oracles.sgd(model.parameters())
    before = oracles.flat_parameters(model)
    with pytest.raises(ArgumentError, match="trains nothing before its last layer"):
        method.step(model, data, optimizer, step=1)
    assert torch.equal(oracles.flat_parameters(model), before)
    assert method.state_dict() == {}
    assert hooks_on(model) == []
    method.features_may_stay = True  # for the first steps of a run, as its recipe has it
    method.step(model, data, optimizer, step=1)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ([nn.Unflatten(1, (12, 1)), nn.Conv1d(12, 3, 1), nn.Flatten()], "has no linear layer"),
        ([nn.Linear(12, 3), nn.Tanh()], "last linear layer of Sequential does not give its logits"),
    ],
)
def test_fishr_says_where_there_is_no_last_linear_layer(head, words, built):
    refused(built, nn.Sequential(nn.Flatten(), *head), words)


def refused(built, model, words):
    model.double()
    with pytest.raises(ArgumentError, match=words):
        built("fishr").step(model, oracles.batches(2), oracles.sgd(model.parameters()), step=1)
    assert hooks_on(model) == []


def test_fishr_says_where_the_last_linear_layer_makes_its_logits_otherwise(built):
    first, twice = nn.Linear(12, 3), nn.Linear(3, 3)
    words = "does not give its logits"
    refused(built, InPlace(nn.Flatten(), nn.Linear(12, 3)), words)
    refused(built, nn.Sequential(nn.Flatten(), first, twice, nn.Tanh(), twice), words)
    refused(built, nn.Sequential(nn.Flatten(), Cosine(12, 3)), "is a Cosine, which computes")


def test_fishrs_variances_are_of_the_biases_that_there_are(built):
    """Against the gradients of single images, by autograd."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 3, bias=False)).double()
    data = oracles.batches(2)

    def variance(images, labels):
        rows = [
            torch.autograd.grad(cross_entropy(model(x[None]), y[None]), model[2].weight)[0]
            for x, y in zip(images, labels, strict=True)
        ]
        return torch.stack(rows).var(0, correction=0)

    risks = torch.stack(oracles.risks(model, data)).detach()
    one, other = (variance(*batch) for batch in data)
    algorithm = built("fishr", anneal=0, settings={"fishr.penalty": 2, "fishr.ema": 0})
    found = algorithm.step(model, data, oracles.sgd(model.parameters()), step=1).losses
    expected = risks + 2 * (one - other).div(2).square().mean()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


def test_gradnorm_takes_the_last_weights_that_the_losses_reach(built):
    weights = []
    for unused in (False, True):
        model = oracles.network()
        if unused:
            model.register_module("unused", nn.Linear(4, 4).double())
            model.forward = nn.Sequential(*list(model)[:-1]).forward
        algorithm = built("gradnorm", settings={"gradnorm.learning_rate": 0.1})
        for step in (1, 2):
            data = oracles.batches(3, seed=step)
            algorithm.step(model, data, oracles.sgd(model.parameters()), step=step)
        weights.append(algorithm.state_dict()["objective.weights"])
    assert weights[0].unique().numel() > 1
    assert torch.equal(*weights)


def test_gradnorm_takes_no_weights_that_are_frozen(built):
    model = oracles.network()
    for parameter in model[-1].parameters():
        parameter.requires_grad_(False)
    before = model[1].weight.clone()
    built("gradnorm").step(model, oracles.batches(2), oracles.sgd(model.parameters()), step=1)
    assert not torch.equal(model[1].weight, before)


def test_gradnorm_says_where_there_is_no_weight_matrix(built):
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12)).double()
    with pytest.raises(ArgumentError, match="Sequential trains none that its logits depend on"):
        built("gradnorm").step(model, oracles.batches(2), oracles.sgd(model.parameters()), step=1)


@pytest.mark.parametrize("name", ["deep-all", "irm", "vrex", "fishr", "gradnorm"])
@pytest.mark.parametrize("model", sorted(MODELS))
def test_with_frozen_batch_norm_pooled_is_the_mean_of_the_domains(model, name, built):
    batches = domain_batches(3)
    networks = [MODELS[model]() for _ in range(2)]
    for network, batch_norm in zip(networks, ("frozen", "per-domain"), strict=True):
        set_training_mode(network, "frozen")
        optimizer = oracles.sgd(network.parameters())
        built(name, batch_norm=batch_norm).step(network, batches, optimizer, step=1)
    for pooled, averaged in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(pooled, averaged, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["agr-sum", "agr-rand", "pcgrad", "irm", "vrex", "fishr"])
def test_with_batch_norm_per_domain_every_method_normalises_alike(name, built):
    means = []
    for method in ("deep-all", name):
        network = MODELS["cnn-batch-norm"]()
        set_training_mode(network, "per-domain")
        step = partial(built(method, batch_norm="per-domain").step, network, domain_batches(3))
        step(oracles.sgd(network.parameters()), step=1)
        means.append(network[1].running_mean)
    torch.testing.assert_close(means[1], means[0])


@pytest.mark.parametrize("name", ["deep-all", "agr-sum", "mldg", "fish"])
def test_gradients_of_the_step_before_do_not_count(name, built):
    ends = []
    for stale in (False, True):
        model = oracles.network()
        if stale:
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
        built(name).step(model, oracles.batches(2), oracles.sgd(model.parameters()), step=1)
        ends.append(oracles.flat_parameters(model))
    assert torch.equal(*ends)


def test_too_few_domains_are_refused(built):
    model = oracles.network()
    for name in ("agr-sum", "mldg+agr-sum", "vrex+pcgrad"):
        with pytest.raises((ArgumentError, NonFiniteError), match="at least 2"):
            built(name).step(model, oracles.batches(1), oracles.sgd(model.parameters()), step=1)
