"""GradVac against algorithm 1 of Wang et al. 2021."""

import math

import pytest
import torch
from hypothesis import assume, given

import gradsurgery as gs
from gradsurgery.errors import ArgumentError
from tests import oracles
from tests.rules.matrices import matrices


def seeded(seed: int = 5, **options) -> gs.GradVac:
    return gs.GradVac(generator=torch.Generator().manual_seed(seed), **options)


def orders(domains: int, generator: torch.Generator) -> list[list[int]]:
    """The orders that a rule with this generator draws."""
    found = []
    for domain in range(domains):
        others = [other for other in range(domains) if other != domain]
        permutation = torch.randperm(domains - 1, generator=generator).tolist()
        found.append([others[position] for position in permutation])
    return found


def test_worked_example():
    # target ½ for orthogonal unit vectors: (½·1 − 0·√¾)/√¾ = 1/√3 of the other one is added
    gradients = torch.eye(2, dtype=torch.float64)
    expected = torch.full((2,), 1 + 1 / math.sqrt(3)).double()
    torch.testing.assert_close(gs.GradVac(target=0.5)(gradients), expected)
    # and then v = (1, 1/√3) has the cosine 1/√(1 + 1/3) · 1/√3 = ½ with the other one
    v = torch.tensor([1.0, 1 / math.sqrt(3)])
    assert oracles.cosine(v.tolist(), [0.0, 1.0]) == pytest.approx(0.5)


@given(matrices(max_domains=4))
def test_a_target_of_zero_is_pcgrad(gradients):
    generator = torch.Generator().manual_seed(5)
    scale = gradients.abs().max().item()
    torch.testing.assert_close(
        seeded(target=0.0)(gradients),
        gs.PCGrad(generator=generator)(gradients),
        rtol=1e-6,
        atol=1e-6 * scale,
    )


@given(matrices(min_domains=3, max_domains=3, max_params=6))
def test_two_steps_of_algorithm_1(gradients):
    steps = [gradients, gradients.roll(1, 0) - 0.5 * gradients]
    assume(all(step.norm(dim=1).min() > 1e-3 for step in steps))
    # far from pairs in line with each other, which projections reduce to rounding errors
    for step in steps:
        cosines = torch.nn.functional.cosine_similarity(step[:, None], step[None], dim=2)
        assume(step.shape[1] > 2 and (cosines - torch.eye(3)).abs().max() < 0.99)
        assume(torch.linalg.cond(step) < 1e4)
    rule = seeded(beta=0.3)
    generator = torch.Generator().manual_seed(5)
    targets = [[0.0] * 3 for _ in range(3)]
    for step in steps:
        expected, targets = oracles.gradvac(step.tolist(), orders(3, generator), targets, 0.3)
        scale = step.abs().max().item()
        torch.testing.assert_close(
            rule(step), torch.tensor(expected).double(), rtol=1e-5, atol=1e-5 * scale
        )
    torch.testing.assert_close(
        rule.state_dict()["targets"], torch.tensor(targets).double(), rtol=1e-6, atol=1e-6
    )


def test_state_restores_the_targets():
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(4, 3, 5, generator=generator)
    rule = seeded(1, beta=0.5)
    for step in steps[:3]:
        rule(step)
    state = rule.state_dict()
    resumed = seeded(2, beta=0.5)
    resumed.load_state_dict(state)
    rule.random = resumed.random = type(rule.random)(torch.Generator().manual_seed(9))
    rule.random._generator.manual_seed(9)
    expected = rule(steps[3])
    resumed.random._generator.manual_seed(9)
    assert torch.equal(resumed(steps[3]), expected)
    assert not torch.equal(rule.state_dict()["targets"], state["targets"])  # a copy, not a view
    resumed.load_state_dict({})
    assert resumed.state_dict() == {}


def test_what_cannot_work_is_said():
    rule = seeded()
    rule(torch.eye(3))
    with pytest.raises(ArgumentError, match="targets for 3 domains, found 2 gradients"):
        rule(torch.eye(2))
    with pytest.raises(ArgumentError, match="fixed target has no state"):
        seeded(target=0.1).load_state_dict(rule.state_dict())


def test_gradients_that_are_zero_or_equal_have_no_effect_on_the_targets():
    rule = seeded(beta=1.0)
    gradients = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    for _ in range(3):
        assert rule(gradients).tolist() == [2.0, 0.0]
    assert rule.state_dict()["targets"].tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    # a target of 1 is out of reach: the pull is long, and finite
    assert rule(torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])).isfinite().all()
