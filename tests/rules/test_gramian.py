"""Inner products and weighted sums, and the rules made of them, whatever the components' size."""

import math

import pytest
import torch
from hypothesis import given

import gradsurgery as gs
from gradsurgery.kernels import compiled
from gradsurgery.rules.gramian import cosines_of, gramian_of, weighted_sum
from tests import oracles
from tests.rules.matrices import matrices


@pytest.fixture(params=["compiled", "by torch"])
def implementation(request, monkeypatch):
    """Both ways to the same numbers: the C functions, and torch's operations."""
    if request.param == "by torch":
        monkeypatch.setattr(compiled, "library", lambda: None)
    elif compiled.library() is None:
        pytest.skip("the package was installed without a C compiler")


@given(matrices(min_domains=1))
def test_gramian_and_cosines(gradients):
    rows = gradients.tolist()
    gramian = gramian_of(gradients.unbind(0))
    expected = torch.tensor([[oracles.dot(a, b) for b in rows] for a in rows], dtype=torch.float64)
    torch.testing.assert_close(gramian, expected, rtol=1e-12, atol=1e-9)
    cosines = torch.tensor([[oracles.cosine(a, b) for b in rows] for a in rows]).double()
    torch.testing.assert_close(cosines_of(gramian), cosines, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("length", [1, 7, 255, 768, 1_500_001])
@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_gramian_is_accurate_whatever_the_layers_may_use(length, precision, implementation):
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
    assert ((gramian - exact).abs() / (norms[:, None] * norms)).max() < 1e-13


def test_weighted_sum_may_overwrite_the_first_row(implementation):
    rows = [torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])]
    weights = torch.tensor([2.0, -1.0], dtype=torch.float64)
    assert weighted_sum(rows, weights, out=rows[0]).tolist() == [-8.0, -16.0]


@pytest.mark.parametrize("power", [66, 0, -66, -90, -120])
@pytest.mark.parametrize("columns", [1, 1024, 5000])
@pytest.mark.parametrize("name", ["pcgrad", "gradvac", "cagrad", "mgda"])
def test_squares_beyond_float32_do_not_matter(name, columns, power, implementation):
    # scaling by a power of 2 is exact; the squares overflow float32 or vanish in it
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0]]).repeat(1, columns)
    expected = gs.rule(name)(gradients.double())
    scaled = gs.rule(name)(gradients * 2.0**power)
    torch.testing.assert_close(scaled.double() / 2.0**power, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [1e-22, 1e-25, 1e-30, 1e30])
def test_small_and_large_components_count(size, implementation):
    row = torch.full((2048,), size)
    gramian = gramian_of([row, -row])
    exact = math.fsum([row[0].item() ** 2] * 2048)
    signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(gramian, exact * signs, rtol=1e-12, atol=0)
    torch.testing.assert_close(cosines_of(gramian), signs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_beyond_float32(dtype, implementation):
    # v₁ = (1, 0) 1e30 − (−1) 1e60 (−1, 1) 1e-30 / 2 = (1/2, 1/2) 1e30, and v₂ is far below
    gradients = torch.tensor([[1e30, 0.0], [-1e-30, 1e-30]]).to(dtype)
    expected = gradients[0, 0].item() * torch.tensor([0.5, 0.5], dtype=torch.float64)
    rtol = 1e-6 if dtype == torch.float32 else 0.02  # 1e-30 is rounded too
    torch.testing.assert_close(gs.PCGrad()(gradients).double(), expected, rtol=rtol, atol=0)


def test_many_domains_and_rows_with_gaps(implementation):
    rows = torch.randn(40, 700, generator=torch.Generator().manual_seed(0))
    exact = rows.double() @ rows.double().T
    torch.testing.assert_close(gramian_of(rows.unbind(0)), exact, rtol=1e-12, atol=1e-10)
    gaps = rows[:, ::2]
    exact = gaps.double() @ gaps.double().T
    torch.testing.assert_close(gramian_of(gaps.unbind(0)), exact, rtol=1e-12, atol=1e-10)
    weights = torch.linspace(-1, 1, 40, dtype=torch.float64)
    update = weighted_sum(gaps.unbind(0), weights, out=torch.empty(350))
    torch.testing.assert_close(update, (weights @ gaps.double()).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("domains", [1, 2, 3, 5, 8, 9])
def test_products_of_float32_are_those_of_float64_to_the_bit(domains, implementation):
    # which holds them exactly
    generator = torch.Generator().manual_seed(domains)
    sizes = torch.exp(8 * torch.randn(domains, 1000, generator=generator))
    rows = torch.randn(domains, 1000, generator=generator) * sizes
    wide = gramian_of([row.double() for row in rows])
    assert torch.equal(gramian_of(rows.unbind(0)), wide)


def test_the_gramian_is_the_same_at_every_call():
    rows = torch.randn(3, 600_001, generator=torch.Generator().manual_seed(0)).unbind(0)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        gramians = [gramian_of(rows) for _ in range(20)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(gramian, gramians[0]) for gramian in gramians)
