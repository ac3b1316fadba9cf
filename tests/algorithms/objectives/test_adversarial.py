"""DANN and CDANN against one backward pass with a reversed gradient, by torch's own parts."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from torch import nn
from torch.nn.functional import cross_entropy, one_hot
from torch.nn.utils import parameters_to_vector

from gradsurgery.algorithms import OBJECTIVES, build_method
from gradsurgery.algorithms.forward import Forward
from gradsurgery.errors import ArgumentError
from tests.algorithms import oracles

FEATURES, CLASSES = 5, 3  # of the oracles' network
NAMES = ["dann", "cdann"]
FALSE_ALARMS = 1e-4


class Reversed(torch.autograd.Function):
    """The identity, with the gradient times −λ: section 4.2 of Ganin et al. 2016."""

    @staticmethod
    def forward(context, features, strength):
        context.strength = strength
        return features.view_as(features)

    @staticmethod
    def backward(context, gradient):
        return -context.strength * gradient, None


class Adversary(nn.Module):
    """DomainBed's discriminator, and its class embeddings for CDANN."""

    def __init__(self, name, width, depth, domains):
        super().__init__()
        widths = [FEATURES, *[width] * (depth - 1), domains]
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        self.layers = nn.ModuleList(layers)
        self.embeddings = nn.Embedding(CLASSES, FEATURES) if name == "cdann" else None
        self.double()

    def loss(self, features, data):
        """CE of all images, as `AbstractDANN.update` weighs them, but each domain alike in DANN."""
        labels = torch.cat([y for _, y in data])
        domains = torch.cat([torch.full_like(y, d) for d, (_, y) in enumerate(data)])
        if self.embeddings is not None:
            features = features + self.embeddings(labels)
        for layer in self.layers[:-1]:
            features = layer(features).relu()
        terms = cross_entropy(self.layers[-1](features), domains, reduction="none")
        if self.embeddings is None:
            return torch.stack([part.mean() for part in terms.split([len(y) for _, y in data])])
        counts = one_hot(labels).sum(dim=0)
        present = len(labels.unique())
        weights = 1.0 / (counts[labels] * present).double()
        parts = (weights * terms).split([len(y) for _, y in data])
        return len(data) * torch.stack([part.sum() for part in parts])


def reversed_gradient_step(model, adversary, optimizer, data, strength):
    """One pass for both players; the model's gradient, and the adversary has taken its step."""
    features = torch.cat(oracles.features(model, data))
    told = adversary.loss(Reversed.apply(features, strength), data).mean()
    total = torch.stack(oracles.risks(model, data)).mean() + told
    parameters = [*model.parameters(), *adversary.parameters()]
    gradients = torch.autograd.grad(total, parameters)
    count = len(list(model.parameters()))
    for parameter, gradient in zip(adversary.parameters(), gradients[count:], strict=True):
        parameter.grad = gradient
    optimizer.step()
    return torch.cat([gradient.flatten() for gradient in gradients[:count]])


def unequal(domains, sizes, seed):
    return [oracles.batches(domains, size, seed)[d] for d, size in enumerate(sizes[:domains])]


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.integers(2, 8),
    st.lists(st.integers(1, 6), min_size=8, max_size=8),
    st.integers(1, 7),
    st.integers(2, 4),
    st.sampled_from(["mean", "torchjd:Mean"]),
)
def test_the_steps_are_those_of_the_reversed_gradient(name, domains, sizes, width, depth, rule):
    torch.manual_seed(domains)
    adversary = Adversary(name, width, depth, domains)
    adam = torch.optim.Adam(adversary.parameters(), lr=0.02, betas=(0.5, 0.9))
    chosen = {"penalty": 0.7, "learning_rate": 0.02, "width": width, "depth": depth}
    algorithm = build_method(
        f"{name}+{rule}",
        generator=torch.Generator(),
        make_optimizer=oracles.sgd,
        settings={f"{name}.{key}": value for key, value in chosen.items()},
    )
    start = parameters_to_vector(adversary.parameters()).detach()
    zero = {"moments": torch.zeros(2, len(start)).double(), "steps": torch.zeros(()).double()}
    given_state = {"discriminator": start, **zero}
    algorithm.load_state_dict({f"objective.{key}": value for key, value in given_state.items()})
    model = oracles.network()
    optimizer = oracles.sgd(model.parameters())
    for step in (1, 2, 3):
        data, before = unequal(domains, sizes, step), oracles.network()
        before.load_state_dict(model.state_dict())
        algorithm.step(model, data, optimizer, step=step)
        gradient = reversed_gradient_step(before, adversary, adam, data, 0.7)
        moved = oracles.flat_parameters(before) - oracles.LEARNING_RATE * gradient
        torch.testing.assert_close(oracles.flat_parameters(model), moved, rtol=1e-9, atol=1e-11)
        found = algorithm.state_dict()["objective.discriminator"]
        expected = parameters_to_vector(adversary.parameters()).detach()
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_each_loss_is_the_risk_less_the_domains_own_part(name):
    torch.manual_seed(0)
    adversary, model = Adversary(name, 4, 3, 3), oracles.network()
    objective = OBJECTIVES[name](penalty=0.7, width=4, depth=3)
    start = parameters_to_vector(adversary.parameters()).detach()
    zero = {"moments": torch.zeros(2, len(start)).double(), "steps": torch.zeros(()).double()}
    objective.load_state_dict({"discriminator": start, **zero})
    data = unequal(3, [4, 1, 6], 1)
    losses = list(objective.losses(Forward(model), data, 1))
    for domain, loss in enumerate(losses):
        told = adversary.loss(torch.cat(oracles.features(model, data)), data)[domain]
        expected = oracles.risks(model, data)[domain] - 0.7 * told
        torch.testing.assert_close(loss, expected)
        found = oracles.flat_gradient(loss, model)
        torch.testing.assert_close(found, oracles.flat_gradient(expected, model))


def started(name, seed=7):
    """The discriminator that a step without learning leaves, layer by layer."""
    options = {"width": 64, "depth": 3, "learning_rate": 0}
    objective = OBJECTIVES[name](generator=torch.Generator().manual_seed(seed), **options)
    list(objective.losses(Forward(oracles.network()), oracles.batches(4), 1))
    sizes = [64 * FEATURES, 64, 64 * 64, 64, 4 * 64, 4]
    whole = objective.state["discriminator"]
    return whole.split([*sizes, CLASSES * FEATURES] if name == "cdann" else sizes)


@pytest.mark.parametrize("name", NAMES)
def test_it_starts_as_torchs_layers_do(name):
    layers = started(name)
    for part, inputs in zip(layers[:6], [FEATURES] * 2 + [64] * 4, strict=True):
        scaled = part.numpy() * inputs**0.5
        assert abs(scaled).max() <= 1
        if len(scaled) > 4:
            assert kstest(scaled, "uniform", args=(-1, 2)).pvalue > FALSE_ALARMS
    if name == "cdann":
        assert kstest(layers[6].numpy(), "norm").pvalue > FALSE_ALARMS


@pytest.mark.parametrize("name", NAMES)
def test_it_is_drawn_by_the_given_generator_alone(name):
    with torch.random.fork_rng():
        before = torch.get_rng_state()
        first = torch.cat(started(name))
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(5)
        assert torch.equal(torch.cat(started(name)), first)
    assert not torch.equal(torch.cat(started(name, seed=8)), first)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_that_fails_leaves_the_discriminator_as_it_was(name, built):
    model, algorithm = oracles.network(), built(name)
    algorithm.step(model, oracles.batches(3), oracles.sgd(model.parameters()), step=1)
    before = algorithm.state_dict()
    data = oracles.batches(3)
    data[2][0][:] = torch.inf
    with pytest.raises(Exception, match="domain 2"):
        algorithm.step(model, data, oracles.sgd(model.parameters()), step=2)
    after = algorithm.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_a_class_of_one_image_weighs_as_much_as_one_of_many():
    labels = [torch.tensor([0, 0, 0, 2]), torch.tensor([0])]
    shares = OBJECTIVES["cdann"]().shares(labels, torch.ones(()).double())
    expected = [[0.25, 0.25, 0.25, 1.0], [0.25]]  # times D = 2, over 2 classes
    assert [part.tolist() for part in shares] == expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["width", "depth"])
def test_no_discriminator_is_too_small_to_be_one(name, key, built):
    least = {"width": 1, "depth": 2}[key]
    built(name, settings={f"{name}.{key}": least})
    with pytest.raises(ArgumentError, match=f"{name}.{key} is a whole number at least {least}"):
        built(name, settings={f"{name}.{key}": least - 1})
