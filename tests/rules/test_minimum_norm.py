"""MGDA and CAGrad against their optimisation problems."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import gradsurgery as gs
from gradsurgery.rules.minimum_norm import coordinates, least_distance
from tests import oracles
from tests.rules.matrices import matrices


def size(gradients: torch.Tensor) -> float:
    return gradients.norm(dim=1).max().item()


def test_worked_examples_of_mgda():
    # the foot of the perpendicular from 0 on the segment, and an end of the segment
    assert gs.MGDA()(torch.tensor([[3.0, 0.0], [0.0, 4.0]])).tolist() == pytest.approx(
        [48 / 25, 36 / 25]
    )
    assert gs.MGDA()(torch.tensor([[1.0, 0.0], [2.0, 1.0]])).tolist() == [1.0, 0.0]
    opposite = torch.tensor([[1.0, 0.0], [-2.0, 0.0]])
    assert gs.MGDA()(opposite).norm().item() == pytest.approx(0, abs=1e-6)
    assert gs.MGDA()(torch.zeros(2, 3)).tolist() == [0.0] * 3


@given(matrices())
def test_mgda_is_the_shortest_in_the_hull(gradients):
    update = gs.MGDA()(gradients)
    scale = size(gradients) or 1.0
    # optimal exactly where g*·g_d ≥ ‖g*‖² for every d
    slack = (gradients @ update - update @ update).min().item()
    assert slack >= -1e-9 * scale**2
    shortest = oracles.shortest_in_hull(gradients.numpy() / scale)
    assert update.norm().item() / scale <= shortest + 1e-6


def test_worked_examples_of_cagrad():
    # g_0 = (½, ½) is the direction that serves the worse of both, so the step is ½ ‖g_0‖ longer
    torch.testing.assert_close(gs.CAGrad()(torch.eye(2)), torch.tensor([0.75, 0.75]))
    # in line: g_0 = −½, the best in [−¾, −¼] for the worse domain, which wants to go up, is −¼
    torch.testing.assert_close(
        gs.CAGrad()(torch.tensor([[1.0], [-2.0]])), torch.tensor([-0.25]), rtol=1e-4, atol=1e-6
    )
    gradients = torch.tensor([[1.0, 5.0], [-3.0, 1.0]])
    torch.testing.assert_close(gs.CAGrad(c=0.0)(gradients), gradients.mean(0))
    assert gs.CAGrad()(torch.zeros(2, 3)).tolist() == [0.0] * 3
    # g_0 = 0 leaves no room to choose from
    assert gs.CAGrad()(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).tolist() == [0.0, 0.0]


@given(matrices(), st.sampled_from([0.2, 0.5, 0.9, 2.0]))
def test_cagrad_is_best_for_the_worst_domain(gradients, c):
    update = gs.CAGrad(c=c)(gradients)
    scale = size(gradients) or 1.0
    mean = gradients.mean(0)
    assert (update - mean).norm() <= (1 + 1e-6) * c * mean.norm() + 1e-9 * scale
    worst = (gradients @ update).min().item() / scale**2
    assert worst >= (gradients @ mean).min().item() / scale**2 - 1e-6
    # no update in the ball is better: by duality the minimum of F bounds all of them
    assert worst >= oracles.cagrad_worst(gradients.numpy() / scale, c) - 2e-5


def test_cagrad_where_no_combination_has_a_direction():
    # the first two cancel, the third is orthogonal: any multiple of the third serves all
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    update = gs.CAGrad()(gradients)
    assert update[0].item() == pytest.approx(0, abs=1e-4)
    assert 1 / 6 - 1e-4 <= update[1].item() <= 1 / 2 + 1e-4


@given(matrices(max_domains=5, max_params=8), st.lists(st.floats(-1, 1), min_size=5, max_size=5))
def test_least_distance_meets_the_conditions_of_its_optimum(gradients, drawn):
    assume(gradients.any())
    gradients = gradients / size(gradients)
    rows = coordinates(gradients @ gradients.T, floor=1e-4)
    heights = np.array(drawn[: len(rows)])
    step = least_distance(rows, heights)
    reached = rows @ (step @ rows)
    assert step.min() >= 0
    assert (reached - heights).min() >= -1e-7
    # complementary: what is exceeded does not pull
    assert abs(step @ (reached - heights)) <= 1e-7 * max(1.0, step.sum())


@pytest.mark.parametrize("domains", [2, 3, 8, 30])
def test_many_domains_in_float32(domains):
    generator = torch.Generator().manual_seed(domains)
    gradients = torch.randn(domains, 1000, generator=generator) - 0.05 * torch.arange(1000).cos()
    scale = size(gradients)
    shortest = gs.MGDA()(gradients)
    assert (gradients @ shortest - shortest @ shortest).min() >= -1e-4 * scale * shortest.norm()
    update, mean = gs.CAGrad()(gradients), gradients.mean(0)
    assert math.isclose((update - mean).norm(), 0.5 * mean.norm(), rel_tol=1e-4)
    assert (gradients @ update).min() > (gradients @ mean).min()
