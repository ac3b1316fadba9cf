"""PCGrad against algorithm 1 of Yu et al. 2020."""

import math

import pytest
import torch
from hypothesis import given

import gradsurgery as gs
from gradsurgery.rules.gramian import BLOCK, cosines_of, gramian_of, weighted_sum
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


def test_worked_example():
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


@given(matrices(min_domains=1))
def test_gramian_and_cosines(gradients):
    rows = gradients.tolist()
    gramian = gramian_of(gradients.unbind(0))
    expected = torch.tensor([[oracles.dot(a, b) for b in rows] for a in rows], dtype=torch.float64)
    torch.testing.assert_close(gramian, expected, rtol=1e-12, atol=1e-9)
    cosines = torch.tensor([[oracles.cosine(a, b) for b in rows] for a in rows]).double()
    torch.testing.assert_close(cosines_of(gramian), cosines, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("length", [1, BLOCK - 1, 3 * BLOCK, 1_500_001])
@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_gramian_is_accurate_in_float32_whatever_the_layers_may_use(length, precision):
    generator = torch.Generator().manual_seed(length)
    rows = torch.randn(3, length, generator=generator)
    rows[1] += rows[0]
    rows[2] -= rows[1]
    exact = torch.tensor(
        [[math.fsum((a.double() * b.double()).tolist()) for b in rows] for a in rows],
        dtype=torch.float64,
    )
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        gramian = gramian_of(rows.unbind(0))
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(allowed)
    norms = exact.diagonal().sqrt()
    assert ((gramian - exact).abs() / (norms[:, None] * norms)).max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype):
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=dtype)
    update = gs.PCGrad()(gradients)
    assert update.dtype == dtype
    assert update.tolist() == [0.5, 1.5]


def test_weighted_sum_may_overwrite_the_first_row():
    rows = [torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])]
    weights = torch.tensor([2.0, -1.0], dtype=torch.float64)
    assert weighted_sum(rows, weights, out=rows[0]).tolist() == [-8.0, -16.0]


def test_squares_that_overflow_float32_do_not_matter():
    # scaling by 2^66 is exact; the squares are beyond float32
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0]]).repeat(1, BLOCK)
    expected = gs.PCGrad()(gradients)
    torch.testing.assert_close(gs.PCGrad()(gradients * 2.0**66), expected * 2.0**66)
