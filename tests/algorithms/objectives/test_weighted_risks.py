"""EQRM's quantile of the risks, and its derivative in each of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradsurgery.algorithms.objectives.weighted_risks import quantile_gradient
from gradsurgery.errors import ArgumentError
from tests.algorithms import oracles

RISKS = st.lists(st.integers(0, 400), min_size=2, max_size=8).map(
    lambda hundredths: torch.tensor(hundredths).double() / 100
)
LEVELS = st.floats(0.02, 0.98)


@given(RISKS.filter(lambda risks: len(risks.unique()) > 1), LEVELS)
def test_it_is_the_derivative_of_scipys_quantile(risks, level):
    leaf = risks.clone().requires_grad_()
    quantile = oracles.kernel_quantile(leaf, level)
    (expected,) = torch.autograd.grad(quantile, leaf)
    found = quantile_gradient(risks, level)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert (found @ risks).item() == pytest.approx(quantile.item(), rel=1e-7, abs=1e-9)


@given(RISKS, LEVELS, st.sampled_from([torch.float32, torch.float64]), st.integers(-30, 25))
def test_a_shift_of_all_risks_shifts_it_and_no_scale_is_too_small(risks, level, dtype, power):
    found = quantile_gradient((risks * 10.0**power).to(dtype), level)
    assert found.sum().item() == pytest.approx(1, abs=1e-4)
    scaled = quantile_gradient(risks.to(dtype), level)
    torch.testing.assert_close(found, scaled, rtol=1e-3, atol=1e-3)


@given(st.floats(0, 1e3), st.integers(2, 8), LEVELS)
def test_of_equal_risks_each_counts_alike(risk, domains, level):
    for dtype in (torch.float32, torch.float64):
        found = quantile_gradient(torch.full((domains,), risk, dtype=dtype), level)
        assert torch.equal(found, torch.full((domains,), 1 / domains, dtype=dtype))


def test_risks_that_are_equal_take_a_step(built):
    images, labels = oracles.batches(1)[0]
    model, before = oracles.network(), oracles.network()
    algorithm = built("eqrm", settings={"eqrm.anneal": 0})
    algorithm.step(model, [(images, labels)] * 3, oracles.sgd(model.parameters()), step=1)
    gradient = oracles.flat_gradient(oracles.risks(before, [(images, labels)])[0], before)
    moved = oracles.flat_parameters(before) - oracles.LEARNING_RATE * gradient
    torch.testing.assert_close(oracles.flat_parameters(model), moved)


def test_domains_of_one_image_and_of_more(built):
    model, before = oracles.network(), oracles.network()
    data = [oracles.batches(3, size)[domain] for domain, size in enumerate((1, 6, 2))]
    algorithm = built("eqrm", settings={"eqrm.anneal": 0})
    algorithm.step(model, data, oracles.sgd(model.parameters()), step=1)
    risks = torch.stack(oracles.risks(before, data))
    gradient = oracles.flat_gradient(oracles.kernel_quantile(risks, 0.75), before)
    moved = oracles.flat_parameters(before) - oracles.LEARNING_RATE * gradient
    torch.testing.assert_close(oracles.flat_parameters(model), moved)


def test_a_run_that_ends_with_the_burn_in_is_one_of_erm(built):
    algorithm = built("eqrm+agr-sum")
    assert algorithm.idle_reason(2500).startswith("eqrm does what erm does for the first 2500")
    assert algorithm.idle_reason(2501) is None
    model = oracles.network()
    with pytest.raises(ArgumentError, match="needs batches of at least 2"):
        algorithm.step(model, oracles.batches(1), oracles.sgd(model.parameters()), step=1)
