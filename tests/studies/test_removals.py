import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradsurgery.rules import rule
from gradsurgery.studies.removals import (
    cosine,
    curvatures,
    group_cosines,
    group_gradients,
    removal,
)


def tiny() -> tuple[nn.Module, Tensor, Tensor]:
    """A network of 17 parameters, whose whole Hessian can be written out."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    return model, torch.randn(5, 2, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])


def flat_loss(flat: Tensor) -> Tensor:
    _, x, y = tiny()
    first, bias, second, shift = flat.split([6, 3, 6, 2])
    hidden = torch.tanh(x @ first.view(3, 2).T + bias)
    return functional.cross_entropy(hidden @ second.view(2, 3).T + shift, y)


def test_curvature_is_that_of_the_whole_hessian() -> None:
    model, x, y = tiny()
    parameters = list(model.parameters())
    flat = torch.cat([p.detach().flatten() for p in parameters])
    hessian = torch.autograd.functional.hessian(flat_loss, flat)
    directions = [torch.randn(17, dtype=torch.float64), torch.eye(17, dtype=torch.float64)[4]]
    found = curvatures(functional.cross_entropy(model(x), y), parameters, directions)
    for r, value in zip(directions, found, strict=True):
        assert value == pytest.approx(float(r @ hessian @ r / (r @ r)), rel=1e-10)


def test_no_direction_has_no_curvature_and_a_straight_loss_none_at_all() -> None:
    weight = torch.ones(2, requires_grad=True)
    found = curvatures(weight.square().sum(), [weight], [torch.zeros(2), torch.ones(2)])
    assert found == [None, 2.0]
    assert curvatures(3 * weight.sum(), [weight], [torch.ones(2)]) == [0.0]


def test_gradients_of_losses_that_share_a_pass() -> None:
    weight, own = torch.tensor([1.0, 2.0], requires_grad=True), torch.ones(1, requires_grad=True)
    shared = weight.square().sum()
    rows = group_gradients([shared, 3 * shared * own[0]], [weight, own])
    assert rows.tolist() == [[2.0, 4.0, 0.0], [6.0, 12.0, 15.0]]


def test_what_pcgrad_takes_away_by_hand() -> None:
    g = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    # v_1 = g_1 + g_2 / 2 = (1/2, 1/2), v_2 = g_2 + g_1 = (0, 1): u = (1/2, 3/2), s = (0, 1)
    found = removal(g.sum(0), rule("pcgrad")(g))
    assert found.part.tolist() == [-0.5, -0.5]
    assert found.length == pytest.approx(math.sqrt(2.5))
    assert found.cosine == pytest.approx(1.5 / math.sqrt(2.5))
    assert found.removed == pytest.approx(math.sqrt(0.5))


def test_what_agr_sum_takes_away_by_hand() -> None:
    g = torch.tensor([[1.0, 3.0, -1.0], [1.0, -1.0, -1.0]])
    found = removal(g.sum(0), rule("agr-sum")(g))  # s = (2, 2, -2), u = (2, 0, -2)
    assert found.part.tolist() == [0.0, 2.0, 0.0]
    assert [found.length, found.cosine] == pytest.approx([math.sqrt(8 / 12)] * 2)
    assert found.removed == pytest.approx(math.sqrt(4 / 12))


def test_nothing_has_no_direction() -> None:
    zero = torch.zeros(2)
    assert removal(zero, zero)[:3] == (None, None, None)
    assert removal(torch.ones(2), zero)[:3] == (0.0, None, 1.0)
    assert cosine(zero, torch.ones(2)) is None


def slow_cosines(rows: Tensor) -> tuple[list[float], list[float], float]:
    """Within, across and expected, from their definitions, pair by pair."""
    batches, groups, _ = rows.shape
    cos = functional.cosine_similarity
    within = [
        float(cos(rows[a, d], rows[b, d], dim=0))
        for d in range(groups)
        for a in range(batches)
        for b in range(a + 1, batches)
    ]
    across = [
        float(cos(rows[a, d], rows[a, e], dim=0))
        for a in range(batches)
        for d in range(groups)
        for e in range(d + 1, groups)
    ]
    own, other = [], []
    for a in range(batches):
        for b in range(batches):
            for d in range(groups):
                for e in range(groups):
                    if a != b:
                        (own if d == e else other).append(float(rows[a, d] @ rows[b, e]))
    return within, across, (sum(other) / len(other)) / (sum(own) / len(own))


@pytest.mark.parametrize(("batches", "groups"), [(2, 2), (3, 4)])
def test_cosines_are_those_of_every_pair(batches: int, groups: int) -> None:
    torch.manual_seed(batches)
    rows = torch.randn(batches, groups, 6, dtype=torch.float64) + 0.5
    found = group_cosines(torch.einsum("adp,bep->adbe", rows, rows))
    within, across, expected = slow_cosines(rows)
    assert sorted(found.within.tolist()) == pytest.approx(sorted(within))
    assert sorted(found.across.tolist()) == pytest.approx(sorted(across))
    assert found.expected == pytest.approx(expected)
    assert found.negative == sum(value < 0 for value in across) / len(across)


def test_the_expected_cosine_is_free_of_noise() -> None:
    """Two groups of cosine 0.6 in noise ten times their length."""
    torch.manual_seed(0)
    means = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    means = functional.pad(means, (0, 98))
    rows = means + torch.randn(400, 2, 100, dtype=torch.float64)
    found = group_cosines(torch.einsum("adp,bep->adbe", rows, rows))
    assert found.expected == pytest.approx(0.6, abs=0.1)
    assert float(found.across.mean()) < 0.1


def test_a_zero_gradient_is_in_no_pair() -> None:
    rows = torch.tensor([[[0.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]])
    found = group_cosines(torch.einsum("adp,bep->adbe", rows, rows))
    assert found.within.tolist() == [1.0]
    assert found.across.tolist() == [1.0]
    rows = torch.zeros(2, 2, 3)
    found = group_cosines(torch.einsum("adp,bep->adbe", rows, rows))
    assert (found.expected, found.negative) == (None, None)
