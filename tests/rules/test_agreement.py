"""Agr-Sum and Agr-Rand against equations 2 to 4."""

import math
from contextlib import contextmanager

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gradsurgery as gs
from gradsurgery.errors import ArgumentError
from gradsurgery.kernels import compiled
from gradsurgery.rules.base import ComponentwiseRule
from tests import oracles
from tests.rules.matrices import matrices

# the fixture chooses the implementation, which stays the same for all examples
SETTINGS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["compiled", "in pieces"], autouse=True)
def implementation(request, monkeypatch):
    """Both ways to the same numbers: the C functions, and torch's operations piece by piece."""
    if request.param == "in pieces":
        monkeypatch.setattr(compiled, "library", lambda: None)
    elif compiled.library() is None:
        pytest.skip("the package was installed without a C compiler")


@contextmanager
def threads(number: int):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fold(rule: ComponentwiseRule, gradients: torch.Tensor):
    """The engine's way: one state per tensor, one domain after the other."""
    state = rule.start(gradients[0].clone())
    for gradient in gradients[1:]:
        state = rule.fold(state, gradient)
    return rule.finish([state], len(gradients))


def fraction(consensus) -> float:
    """Agreement among the components that are not zero in every domain."""
    moving = consensus.updates[0].numel() - consensus.zeros.item()
    return consensus.counts.item() / moving


def test_worked_example_of_equations_2_and_3():
    #           agree +  agree −  conflict  zero in all  zero in some
    gradients = torch.tensor([[1.0, -1.0, 2.0, 0.0, 0.0], [2.0, -3.0, -1.0, -0.0, 5.0]])
    assert gs.AgrSum()(gradients).tolist() == [3.0, -4.0, 0.0, 0.0, 0.0]
    consensus = fold(gs.AgrSum(), gradients)
    assert consensus.updates[0].tolist() == [3.0, -4.0, 0.0, 0.0, 0.0]
    assert (consensus.counts.item(), consensus.zeros.item()) == (2, 1)
    for zero_agrees in (True, False):
        consensus = fold(gs.AgrRand(zero_agrees=zero_agrees), gradients)
        assert (consensus.counts.item(), consensus.zeros.item()) == (2, 1)


def test_worked_example_of_equation_4():
    gradients = torch.tensor([[1.0, -1.0, 2.0, 0.0], [2.0, -3.0, -1.0, 0.0]])
    # agreeing: 3, −4 and 0, so σ = 7/3; with the published code's reading 3 and −4, so σ = 7/2
    for zero_agrees, sigma, noisy in ((True, 7 / 3, [2]), (False, 7 / 2, [2, 3])):
        rule = gs.AgrRand(generator=torch.Generator().manual_seed(3), zero_agrees=zero_agrees)
        draws = torch.randn(4, generator=torch.Generator().manual_seed(3))
        expected = torch.tensor([3.0, -4.0, 0.0, 0.0])
        expected[noisy] = draws[noisy] * sigma
        torch.testing.assert_close(rule(gradients), expected)


@SETTINGS
@given(matrices())
def test_agr_sum_is_equation_3(gradients):
    expected = torch.tensor(oracles.agr_sum(gradients.tolist()), dtype=gradients.dtype)
    torch.testing.assert_close(gs.AgrSum()(gradients), expected)
    consensus = fold(gs.AgrSum(), gradients)
    torch.testing.assert_close(consensus.updates[0], expected)
    counts = consensus.counts.item(), consensus.zeros.item()
    assert counts == oracles.agreeing_and_zero(gradients.tolist())


@SETTINGS
@given(matrices())
def test_agr_rand_is_equation_4_where_the_domains_agree(gradients):
    update = gs.AgrRand()(gradients)
    agrees = torch.tensor(oracles.agreement(gradients.tolist()))
    expected = torch.tensor(oracles.agr_sum(gradients.tolist()), dtype=gradients.dtype)
    torch.testing.assert_close(update[agrees], expected[agrees])
    if not agrees.any():
        assert not update.any()  # σ = 0 where nothing agrees


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("zero_agrees", [True, False])
@pytest.mark.parametrize("length", [1, 7, 256, 1003])
def test_every_draw_is_where_equation_4_wants_it(length, zero_agrees, reduction, dtype):
    whole = torch.randint(-2, 3, (3, length), generator=torch.Generator().manual_seed(length))
    draws = torch.empty(length, dtype=dtype).normal_(generator=torch.Generator().manual_seed(3))
    signs = whole.sign()
    agrees = (signs == signs[0]).all(0) & (zero_agrees | (signs[0] != 0))
    total = whole.sum(0).double()
    sigma = total[agrees].abs().mean() if agrees.any() else torch.zeros(())
    expected = torch.where(agrees, total, draws * sigma) / (3 if reduction == "mean" else 1)
    generator = torch.Generator().manual_seed(3)
    rule = gs.AgrRand(generator=generator, zero_agrees=zero_agrees, reduction=reduction)
    torch.testing.assert_close(rule(whole.to(dtype)), expected.to(dtype))


def test_noise_has_the_sigma_of_equation_4_and_touches_conflicts_only():
    # 200,000 conflicts and σ = 3: the mean of the draws is N(0, 9/n), their variance is
    # 9 χ²(n−1)/(n−1), about N(9, 2·81/n). Limits of 5 standard deviations on each side:
    # a false alarm in less than 1.2e-6 of all seeds.
    n = 200_000
    gradients = torch.ones(3, n + 2)
    gradients[1, :n] = -1.0
    gradients[:, n:] = torch.tensor([[2.0, -0.5], [1.0, -0.5], [1.0, -1.0]])  # sums 4 and −2
    update = gs.AgrRand(generator=torch.Generator().manual_seed(11))(gradients).double()
    noise = update[:n]
    assert update[n:].tolist() == [4.0, -2.0]
    assert abs(noise.mean().item()) < 5 * 3 / math.sqrt(n)
    assert abs(noise.var().item() - 9) < 5 * 9 * math.sqrt(2 / n)
    # a normal variable exceeds 2σ with p = 0.0455
    beyond = (noise.abs() > 6).double().mean().item()
    assert abs(beyond - 0.0455) < 5 * math.sqrt(0.0455 * 0.9545 / n)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(dtype):
    gradients = torch.tensor([[1.0, -2.0, 0.0, 4.0], [0.5, -1.0, 0.0, -4.0]], dtype=dtype)
    assert gs.AgrSum()(gradients).tolist() == [1.5, -3.0, 0.0, 0.0]
    assert gs.AgrSum()(gradients).dtype == dtype
    assert fraction(fold(gs.AgrSum(), gradients)) == 2 / 3
    update = gs.AgrRand()(gradients)
    assert update.dtype == dtype
    assert update[:3].tolist() == [1.5, -3.0, 0.0]


def test_longer_than_a_piece_and_of_any_length():
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(3, (1 << 19) + 17, generator=generator)
    signs = gradients.sign()
    agrees = (signs == signs[0]).all(0)
    expected = torch.where(agrees, gradients.double().sum(0), 0).float()
    torch.testing.assert_close(gs.AgrSum()(gradients), expected)
    consensus = fold(gs.AgrSum(), gradients)
    torch.testing.assert_close(consensus.updates[0], expected)
    assert fraction(consensus) == pytest.approx(agrees.double().mean().item(), abs=1e-12)


def test_tiny_values_agree_by_their_sign():
    smallest = torch.finfo(torch.float32).smallest_normal
    gradients = torch.tensor([[smallest, smallest], [2 * smallest, -smallest]])
    assert gs.AgrSum()(gradients).tolist() == [3 * smallest, 0.0]
    assert fold(gs.AgrSum(), gradients).updates[0].tolist() == [3 * smallest, 0.0]


def test_nothing_depends_on_the_number_of_threads():
    gradients = torch.randn(2, 400_003, generator=torch.Generator().manual_seed(5))
    updates = []
    for number in (1, 2, 5):
        with threads(number):
            updates.append(gs.AgrRand(generator=torch.Generator().manual_seed(1))(gradients))
            updates.append(gs.AgrSum()(gradients))
            updates.append(fold(gs.AgrSum(), gradients).updates[0])
    assert all(torch.equal(update, updates[0]) for update in updates[::3])
    assert all(torch.equal(update, updates[1]) for update in updates[1::3] + updates[2::3])


def test_mean_reduction_divides_by_the_number_of_domains():
    gradients = torch.tensor([[1.0, -1.0], [2.0, 3.0], [3.0, 2.0]])
    assert gs.AgrSum(reduction="mean")(gradients).tolist() == [2.0, 0.0]
    seeds = [torch.Generator().manual_seed(0) for _ in range(2)]
    total = gs.AgrRand(generator=seeds[0])(gradients)
    torch.testing.assert_close(
        gs.AgrRand(generator=seeds[1], reduction="mean")(gradients), total / 3
    )
    with pytest.raises(ArgumentError, match="reduction is 'sum' or 'mean', found 'max'"):
        gs.AgrSum(reduction="max")


@SETTINGS
@given(st.sampled_from([gs.AgrSum, gs.AgrRand]), matrices())
def test_arguments_are_left_as_they_are(kind, gradients):
    before = gradients.clone()
    kind()(gradients)
    assert torch.equal(gradients, before)


def test_strided_and_empty_gradients():
    gradients = torch.tensor([[1.0, -1.0], [2.0, 3.0]]).T  # rows (1, 2) and (−1, 3)
    assert gs.AgrSum()(gradients).tolist() == [0.0, 5.0]
    assert gs.AgrSum()(torch.zeros(2, 0)).shape == (0,)
