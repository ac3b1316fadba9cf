"""AND-mask, SAND-mask and GradDrop against their papers' formulas."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

import gradsurgery as gs
from tests import oracles
from tests.rules.matrices import matrices

TAUS = st.sampled_from([0.0, 0.2, 1 / 3, 0.5, 0.6, 0.8, 1.0])


def fold(rule, gradients):
    state = rule.start(gradients[0].clone())
    for gradient in gradients[1:]:
        state = rule.fold(state, gradient)
    return rule.finish([state], len(gradients))


def test_worked_example_of_and_mask():
    #                 all +  two of three  all zero  + 0 0
    rows = [[1.0, 1.0, 0.0, 3.0], [2.0, 4.0, 0.0, 0.0], [3.0, -2.0, 0.0, 0.0]]
    gradients = torch.tensor(rows)
    assert gs.ANDMask()(gradients).tolist() == [2.0, 0.0, 0.0, 0.0]
    assert gs.ANDMask(tau=0.3)(gradients).tolist() == [2.0, 1.0, 0.0, 1.0]
    assert gs.ANDMask(reduction="sum")(gradients).tolist() == [6.0, 0.0, 0.0, 0.0]
    # one of four is kept: 4 × the mean
    assert gs.ANDMask(rescale=True)(gradients).tolist() == [8.0, 0.0, 0.0, 0.0]
    for tau, kept in ((1.0, 1), (0.3, 3), (0.0, 3)):
        consensus = fold(gs.ANDMask(tau=tau), gradients)
        assert (consensus.counts.item(), consensus.zeros.item()) == (kept, 1)
    nothing = torch.tensor([[1.0], [-1.0]])
    assert gs.ANDMask(rescale=True)(nothing).tolist() == [0.0]


@given(matrices(), TAUS)
def test_and_mask_is_its_formula(gradients, tau):
    expected = torch.tensor(oracles.and_mask(gradients.tolist(), tau), dtype=torch.float64)
    torch.testing.assert_close(gs.ANDMask(tau=tau)(gradients), expected)


@given(matrices())
def test_and_mask_at_one_is_agr_sum(gradients):
    torch.testing.assert_close(gs.ANDMask(reduction="sum")(gradients), gs.AgrSum()(gradients))
    consensus = fold(gs.ANDMask(), gradients)
    counts = consensus.counts.item(), consensus.zeros.item()
    assert counts == oracles.agreeing_and_zero(gradients.tolist())


def test_worked_example_of_sand_mask():
    # signs 1, 0 and 1; variances 2, 8 and 0: masks tanh(10 · ½ / 2), 0 and 1
    gradients = torch.tensor([[1.0, 2.0, 7.0], [3.0, -2.0, 7.0]])
    mask = math.tanh(2.5)
    torch.testing.assert_close(gs.SANDMask()(gradients), torch.tensor([2 * mask, 0.0, 7.0]))
    torch.testing.assert_close(
        gs.SANDMask(reduction="sum")(gradients), torch.tensor([4 * mask, 0.0, 14.0])
    )
    torch.testing.assert_close(
        gs.SANDMask(rescale=True)(gradients),
        torch.tensor([2 * mask, 0.0, 7.0]) * 3 / (mask + 1),
    )
    consensus = fold(gs.SANDMask(), torch.cat([gradients, torch.zeros(2, 4)], 1))
    assert (consensus.counts.item(), consensus.zeros.item()) == (2, 4)


@given(matrices(), st.sampled_from([0.0, 0.2, 0.5, 0.6, 0.8]), st.sampled_from([0.01, 1.0, 10.0]))
def test_sand_mask_is_its_formula(gradients, tau, k):
    expected = torch.tensor(oracles.sand_mask(gradients.tolist(), tau, k), dtype=torch.float64)
    torch.testing.assert_close(gs.SANDMask(tau=tau, k=k)(gradients), expected, rtol=1e-6, atol=1e-9)


def test_the_variance_of_sand_mask_does_not_cancel():
    # squares summed in float32 would lose a variance of 1 beside means of 1e5
    gradients = torch.tensor([[1e5], [1e5 + 1], [1e5 + 2]])
    expected = torch.tensor([(1e5 + 1) * math.tanh(0.5)])
    torch.testing.assert_close(gs.SANDMask(k=1.0)(gradients), expected)
    # nor underflow in half precision: variance 5e-9, so that k/σ² = 2e9 saturates
    small = torch.tensor([[1e-4], [2e-4]], dtype=torch.float16)
    torch.testing.assert_close(gs.SANDMask()(small), small.mean(0), rtol=1e-2, atol=1e-6)


def test_longer_than_a_piece():
    gradients = torch.randn(3, (1 << 17) + 5, generator=torch.Generator().manual_seed(0)).double()
    agreement = gradients.sign().mean(0).abs()
    kept = torch.where(agreement == 1, gradients.mean(0), 0.0)
    torch.testing.assert_close(gs.ANDMask()(gradients), kept)
    mask = torch.tanh(10.0 / gradients.var(0) * (agreement - 0.5)).clamp(min=0)
    torch.testing.assert_close(gs.SANDMask()(gradients), mask * gradients.mean(0))
    draws = torch.rand(
        gradients.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )
    purity = (1 + gradients.sum(0) / gradients.abs().sum(0)) / 2
    sign = torch.where(purity > draws, 1.0, -1.0)
    expected = torch.where(gradients * sign > 0, gradients, 0.0).sum(0)
    update = gs.GradDrop(generator=torch.Generator().manual_seed(3))(gradients)
    torch.testing.assert_close(update, expected)


def test_worked_example_of_graddrop():
    # positive 3 of 4, so purity 3/4: U < 3/4 keeps 3, otherwise −1
    gradients = torch.tensor([[3.0] * 8, [-1.0] * 8])
    draws = torch.rand(8, generator=torch.Generator().manual_seed(1))
    kept = torch.where(draws < 0.75, 3.0, -1.0)
    assert len(kept.unique()) == 2
    for leak in (0.0, 0.25, 1.0):
        rule = gs.GradDrop(generator=torch.Generator().manual_seed(1), leak=leak)
        torch.testing.assert_close(rule(gradients), 2 * leak + (1 - leak) * kept)


@given(matrices(), st.sampled_from([0.0, 0.3]), st.integers(0, 100))
def test_graddrop_is_its_algorithm(gradients, leak, seed):
    draws = torch.rand(
        gradients.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    expected = oracles.graddrop(gradients.tolist(), draws.tolist(), leak)
    update = gs.GradDrop(generator=torch.Generator().manual_seed(seed), leak=leak)(gradients)
    torch.testing.assert_close(update, torch.tensor(expected, dtype=torch.float64))


def test_graddrop_keeps_signs_as_often_as_their_purity():
    # 100,000 components: the share of kept positive signs is N(0.2, 0.16/n) within 5 deviations
    gradients = torch.tensor([[1.0], [-4.0]]).repeat(1, 100_000)
    share = (gs.GradDrop()(gradients) > 0).double().mean().item()
    assert abs(share - 0.2) < 5 * math.sqrt(0.16 / 100_000)
