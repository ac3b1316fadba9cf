"""PCGrad against algorithm 1 of Yu et al. 2020, GradVac against that of Wang et al. 2021."""

import math

import pytest
import torch
from hypothesis import assume, given

import gradsurgery as gs
from gradsurgery.errors import ArgumentError
from tests import oracles
from tests.rules.matrices import matrices


@given(matrices(max_domains=2))
def test_two_domains_in_closed_form(gradients):
    left, right = gradients
    inner = left @ right
    expected = left + right
    if inner < 0:
        expected = expected - inner / (right @ right) * right - inner / (left @ left) * left
    torch.testing.assert_close(gs.PCGrad()(gradients), expected, rtol=1e-9, atol=1e-9)


def test_worked_example_of_pcgrad():
    # g_1·g_2 = −1: v_1 = (1, 0) + ½(−1, 1) = (½, ½); v_2 = (−1, 1) + (1, 0) = (0, 1)
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    torch.testing.assert_close(gs.PCGrad()(gradients), torch.tensor([0.5, 1.5]))


@given(matrices(min_domains=3, max_domains=4, max_params=5))
def test_a_result_that_one_of_the_orders_allows(gradients):
    update = gs.PCGrad()(gradients)
    scale = 1 + gradients.abs().sum().item()
    # far from exact ties, where rounding decides whether a projected pair still conflicts
    distance = min(
        max(abs(a - b) for a, b in zip(update.tolist(), result, strict=True))
        for result in oracles.pcgrad_results(gradients.tolist())
    )
    assert distance <= 1e-7 * scale


def test_every_order_is_reached():
    angles = torch.tensor([0.0, 2.1, 4.0], dtype=torch.float64)
    gradients = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0], [2.0], [0.7]])
    expected = {tuple(round(x, 9) for x in r) for r in oracles.pcgrad_results(gradients.tolist())}
    assert len(expected) > 2
    rule = gs.PCGrad(generator=torch.Generator().manual_seed(0))
    # 8 equally likely choices of orders: each is missed 200 times with probability below 3e-12
    found = {tuple(round(x, 9) for x in rule(gradients).tolist()) for _ in range(200)}
    assert found == expected


def test_without_conflict_it_is_the_sum():
    gradients = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    assert gs.PCGrad()(gradients).tolist() == [1.0, 1.0, 3.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype):
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=dtype)
    update = gs.PCGrad()(gradients)
    assert update.dtype == dtype
    assert update.tolist() == [0.5, 1.5]


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


def test_worked_example_of_gradvac():
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
