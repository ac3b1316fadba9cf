"""Agr-EMA against its equations, written out over all steps."""

import math
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gradsurgery as gs
from gradsurgery.errors import ArgumentError, NonFiniteError
from tests import oracles

DECAYS = st.sampled_from([0.0, 0.5, 0.75])
"""With whole numbers for gradients no sum is rounded, so that zeros are exact."""


@st.composite
def histories(draw):
    """Gradients of some steps, [steps][domains][params], of whole numbers."""
    shape = draw(st.integers(1, 5)), draw(st.integers(2, 4)), draw(st.integers(1, 6))
    numbers = st.lists(st.integers(-3, 3), min_size=math.prod(shape), max_size=math.prod(shape))
    return torch.tensor(draw(numbers), dtype=torch.float64).reshape(shape)


def implementation(compiled: bool):
    """The C function, where there is one, or torch's operations piece by piece."""
    path = "gradsurgery.kernels.compiled.library"
    return nullcontext() if compiled else mock.patch(path, return_value=None)


@given(histories(), DECAYS, st.sampled_from(["sum", "mean"]), st.booleans())
def test_every_step_is_that_of_the_equations(history, beta, reduction, compiled):
    rule = gs.AgrEMA(beta=beta, reduction=reduction)
    for step in range(1, len(history) + 1):
        with implementation(compiled):
            update = rule(history[step - 1])
        expected, _, means = oracles.agr_ema(history[:step].tolist(), beta)
        divisor = history.shape[1] if reduction == "mean" else 1
        torch.testing.assert_close(update, torch.tensor(expected).double() / divisor)
        # the sums are the means without the factor that all of them share
        factor = (1 - beta**step) / (1 - beta)
        expected_sums = torch.tensor(means, dtype=torch.float64) * factor
        torch.testing.assert_close(rule.state_dict()["sums"], expected_sums)


@given(histories())
def test_without_a_memory_it_is_agr_sum(history):
    rule = gs.AgrEMA(beta=0.0)
    for gradients in history:
        assert torch.equal(rule(gradients), gs.AgrSum()(gradients))
    for beta in (0.5, 0.99):
        assert torch.equal(gs.AgrEMA(beta=beta)(history[0]), gs.AgrSum()(history[0]))


@given(histories(), st.sampled_from([1, 2, 8]))
def test_signs_are_counted_within_the_limit(history, limit):
    rule = gs.AgrEMA(memory="counts", limit=limit)
    for step in range(1, len(history) + 1):
        update = rule(history[step - 1])
        expected, counts = oracles.agr_ema_counts(history[:step].tolist(), limit)
        torch.testing.assert_close(update, torch.tensor(expected).double())
        assert rule.state_dict()["counts"].dtype == torch.int8
        assert rule.state_dict()["counts"].tolist() == counts
    assert torch.equal(gs.AgrEMA(memory="counts")(history[0]), gs.AgrSum()(history[0]))


def test_counts_know_no_scale_and_survive_a_scaler_and_a_file():
    model, rule = Linear(), gs.AgrEMA(memory="counts")
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    gs.backward(model.losses(GOOD, ()), model.named_parameters(), rule, scaler=scaler)
    counts = rule.state_dict()["counts"]
    assert torch.equal(counts, GOOD.sign().to(torch.int8))
    model.zero_grad()
    losses = list(model.losses(GOOD, ()))
    losses[1] = losses[1] + Poisoned.apply(model.weights[0])
    gs.backward(losses, model.named_parameters(), rule, scaler=scaler)
    assert all(weight.grad.isnan().all() for weight in model.weights)
    assert torch.equal(rule.state_dict()["counts"], counts)
    other = gs.AgrEMA(memory="counts")
    other.load_state_dict({"counts": counts})
    assert torch.equal(other(-GOOD), rule(-GOOD))
    with pytest.raises(ArgumentError, match="memory means has the key 'sums', found 'counts'"):
        gs.AgrEMA().load_state_dict({"counts": counts})
    with pytest.raises(ArgumentError, match=r"counts of agr-ema are int8 \[domains, params\]"):
        other.load_state_dict({"counts": counts.float()})


def test_batch_noise_in_the_decision_shrinks_as_derived():
    """P(Φ_n = 1) = p^D + (1 − p)^D with p = P(N(0, 1) < (μ/σ) √((1 + β)/(1 − β)))."""
    beta, domains, size, signal = 0.8, 3, 40_000, 0.3
    rule, draws = gs.AgrEMA(beta=beta), torch.Generator().manual_seed(0)
    for _ in range(40):  # β^40 is 1e-4 of a step
        gradients = signal + torch.randn(domains, size, generator=draws)
        update = rule(gradients)
    for decay, kept in ((beta, update != 0), (0.0, gs.AgrSum()(gradients) != 0)):
        z = signal * math.sqrt((1 + decay) / (1 - decay))
        p = (1 + math.erf(z / math.sqrt(2))) / 2
        expected = p**domains + (1 - p) ** domains
        error = math.sqrt(expected * (1 - expected) / size)
        assert kept.double().mean().item() == pytest.approx(expected, abs=5 * error)


class Poisoned(torch.autograd.Function):
    """A sum whose gradient is infinite."""

    @staticmethod
    def forward(ctx, weight):
        return weight.sum()

    @staticmethod
    def backward(ctx, gradient):
        return torch.full((3,), math.inf)


class Linear(nn.Module):
    """Weights whose gradients are handed to it, some of them reached by no loss or by some."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        sizes = (3, 2, 4)
        self.weights = nn.ParameterList([torch.zeros(n, dtype=dtype) for n in sizes])

    def losses(self, rows, missing):
        for domain, row in enumerate(rows):
            parts = zip(row.split([3, 2, 4]), self.weights, strict=True)
            reached = [g @ w for at, (g, w) in enumerate(parts) if (domain, at) not in missing]
            yield torch.stack(reached).sum()


MISSING = st.sets(st.tuples(st.integers(0, 2), st.sampled_from([0, 1])))


def step_and_check(model, rule, history, missing):
    """One more step of `history`, against the equations with zeros for what is missing."""
    model.zero_grad()
    result = gs.backward(model.losses(history[-1][0], missing), model.named_parameters(), rule)
    steps = []
    for rows, gaps in history:
        filled = rows.clone()
        for domain, at in gaps:
            filled[domain, [slice(0, 3), slice(3, 5)][at]] = 0
        steps.append(filled.tolist())
    update, _, means = oracles.agr_ema(steps, rule.values["beta"])
    found, agreeing, moving = [], 0, 0
    for at, (begin, end) in enumerate([(0, 3), (3, 5), (5, 9)]):
        reached = any((domain, at) not in missing for domain in range(3))
        gradient = model.weights[at].grad
        assert (gradient is not None) == reached
        found += gradient.tolist() if reached else [0.0] * (end - begin)
        agree, zero = oracles.agreeing_and_zero([row[begin:end] for row in means])
        here = (end - begin - zero) * reached
        agreeing, moving = agreeing + agree * reached, moving + here
        if here:
            assert result.moving_by_parameter[f"weights.{at}"] == here
            assert result.agreeing_by_parameter[f"weights.{at}"] == pytest.approx(agree / here)
    assert found == update
    assert result.agreeing == (pytest.approx(agreeing / moving) if moving else None)


@st.composite
def trainings(draw):
    """Some steps of three domains with whole numbers for gradients, and what is missing in each."""
    numbers = st.lists(st.integers(-3, 3).map(float), min_size=27, max_size=27)
    steps = draw(st.lists(st.tuples(numbers, MISSING), min_size=1, max_size=4))
    return [(torch.tensor(values).reshape(3, 9), missing) for values, missing in steps]


@settings(max_examples=30)
@given(trainings(), DECAYS)
def test_the_engine_remembers_what_domains_do_not_reach(steps, beta):
    model, rule = Linear(), gs.AgrEMA(beta=beta)
    for step in range(1, len(steps) + 1):
        step_and_check(model, rule, steps[:step], steps[step - 1][1])


@pytest.mark.parametrize("kernels", ["accelerator", "without_triton"])
def test_counts_on_an_accelerator_are_those_on_the_processor(kernels, request, monkeypatch):
    request.getfixturevalue(kernels)
    draws = torch.Generator().manual_seed(0)
    rules = gs.AgrEMA(memory="counts", limit=2), gs.AgrEMA(memory="counts", limit=2)
    for _ in range(5):
        model, rows = Linear(), torch.randint(-3, 4, (3, 9), generator=draws).float()
        gs.backward(model.losses(rows, ()), model.parameters(), rules[0])
        found = torch.cat([weight.grad for weight in model.weights])
        with monkeypatch.context() as patch:
            patch.setattr("gradsurgery.kernels.network.DEVICES", set())
            patch.setattr("gradsurgery.kernels.network.ONE_BY_ONE", {"cpu"})
            assert torch.equal(rules[1](rows), found)


@pytest.mark.parametrize("kernels", ["accelerator", "without_triton"])
@pytest.mark.parametrize("seed", range(4))
def test_the_engine_on_an_accelerator_too(seed, kernels, request):
    request.getfixturevalue(kernels)
    draws = torch.Generator().manual_seed(seed)
    model, rule = Linear(), gs.AgrEMA(beta=0.5)
    gaps = [set(), {(0, 0), (2, 1)}, {(d, 1) for d in range(3)}, {(1, 0)}]
    steps = [(torch.randint(-3, 4, (3, 9), generator=draws).float(), gap) for gap in gaps]
    for step in range(1, len(steps) + 1):
        step_and_check(model, rule, steps[:step], steps[step - 1][1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1, 255, 400_003])
def test_both_implementations_see_the_same(length, dtype):
    draws = torch.Generator().manual_seed(0)
    rules = gs.AgrEMA(), gs.AgrEMA()
    for step in range(3):
        rows = torch.randn(3, length, generator=draws, dtype=dtype)
        rows[:, length // 2 :] *= step > 1  # zero in every domain, until then
        finite, verdicts = torch.tensor(True), []
        for rule, compiled in zip(rules, (True, False), strict=True):
            with implementation(compiled):
                verdicts.append(rule.judge(rows.clone(), finite))
        for found, expected in zip(*verdicts, strict=True):
            torch.testing.assert_close(found, expected)
    states = [rule.state_dict()["sums"] for rule in rules]
    torch.testing.assert_close(*states)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_sum_beyond_the_precision_counts_where_it_is_used(compiled):
    rule, finite = gs.AgrEMA(beta=0.5), torch.tensor(True)
    first = torch.tensor([[1.0, -8e37], [1.0, 1.0]])
    with implementation(compiled):
        assert rule.judge(first, finite).sound
        # no component is beyond float32 with what was remembered, and the second is not used
        rows = torch.tensor([[1.0, 3e38], [1.0, 3e38]])
        assert not rule.judge(rows.clone(), finite).sound
        rows[0, 1] = -3e38
        assert rule.judge(rows.clone(), finite).sound
        rows[:, 0] = 3e38
        assert not rule.judge(rows, finite).sound


GOOD = torch.tensor([[1.0, 2, 3, 4, 5, 6, 7, 8, 9], [-3, 2, 1, 1, 1, 1, 1, 1, 1]])


def after_a_step() -> tuple[Linear, gs.AgrEMA, torch.Tensor]:
    model, rule = Linear(), gs.AgrEMA(beta=0.5)
    gs.backward(model.losses(GOOD, ()), model.named_parameters(), rule)
    return model, rule, rule.state_dict()["sums"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_not_remembered(bad):
    model, rule, before = after_a_step()
    spoilt = GOOD.clone()
    spoilt[1, 4] = bad
    with pytest.raises(NonFiniteError, match="domain 1"):
        gs.backward(model.losses(spoilt, ()), model.named_parameters(), rule)
    with pytest.raises(NonFiniteError, match=r"domain 1 is .* at component 4"):
        rule(spoilt)
    assert torch.equal(rule.state_dict()["sums"], before)


@pytest.mark.parametrize("kernels", ["accelerator", "without_triton"])
def test_an_accelerator_is_not_waited_for_and_remembers_no_bad_step(kernels, request):
    request.getfixturevalue(kernels)
    model, rule, before = after_a_step()
    model.zero_grad()
    losses = list(model.losses(GOOD, ()))
    losses[1] = losses[1] + Poisoned.apply(model.weights[0])
    result = gs.backward(losses, model.named_parameters(), rule, defer_check=True)
    assert result.found_inf.item() == 1
    assert model.weights[0].grad.isnan().all()
    assert torch.equal(rule.state_dict()["sums"], before)
    with pytest.raises(NonFiniteError, match=r"domain 1 at parameter weights\.0"):
        result.check()
    model.zero_grad()
    huge = torch.full_like(GOOD, 3e38)
    result = gs.backward(model.losses(huge, ()), model.named_parameters(), rule, defer_check=True)
    assert torch.equal(rule.state_dict()["sums"], before)
    with pytest.raises(NonFiniteError, match="finite and the update is not"):
        result.check()


def test_sums_beyond_the_precision_are_refused_and_not_remembered():
    opposed = torch.tensor([[2e38], [-2e38]])  # the update is 0, the second sum 3.8e38
    rule = gs.AgrEMA(beta=0.9)
    assert rule(opposed).tolist() == [0.0]
    with pytest.raises(NonFiniteError, match=r"ends at 3\.4e"):
        rule(opposed)
    assert torch.equal(rule.state_dict()["sums"], opposed)
    model, rule, before = after_a_step()
    with pytest.raises(NonFiniteError, match="finite and the update is not"):
        gs.backward(model.losses(torch.full_like(GOOD, 3e38), ()), model.named_parameters(), rule)
    assert torch.equal(rule.state_dict()["sums"], before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_gradients_are_remembered_in_float32(dtype):
    model, rule = Linear(dtype), gs.AgrEMA(beta=0.75)
    rows = torch.cat([GOOD[:1], -GOOD[:1] / 512]).to(dtype)
    total = torch.zeros(2, 9, dtype=torch.float64)
    for _ in range(3):
        model.zero_grad()
        gs.backward(model.losses(rows, ()), model.named_parameters(), rule)
        total = 0.75 * total + rows.double()
        rows = -rows / 64
    sums = rule.state_dict()["sums"]
    assert sums.dtype == torch.float32
    torch.testing.assert_close(sums.double(), total, rtol=1e-6, atol=0)
    assert model.weights[0].grad.dtype == dtype


def test_what_a_scaler_would_mix_is_refused():
    model = Linear()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with pytest.raises(ArgumentError, match="agr-ema gives another update for scaled losses"):
        gs.backward(model.losses(GOOD, ()), model.parameters(), gs.AgrEMA(), scaler=scaler)


def test_other_domains_or_parameters_are_refused():
    rule = gs.AgrEMA()
    rule(torch.ones(3, 5))
    for other in (torch.ones(2, 5), torch.ones(3, 4)):
        found = rf"3 domains and 5 components, found gradients of {len(other)} and {len(other[0])};"
        with pytest.raises(ArgumentError, match=found):
            rule(other)
    rule.load_state_dict({})
    assert rule(torch.ones(2, 4)).tolist() == [2.0] * 4
    for state in ({"sums": torch.ones(3)}, {"sums": torch.ones(2, 3, dtype=torch.int64)}):
        with pytest.raises(ArgumentError, match=r"real numbers \[domains, params\], found"):
            rule.load_state_dict(state)


def test_a_subclass_computes_what_it_says():
    class Doubled(gs.AgrEMA):
        def judge(self, gradients, finite):
            verdict = super().judge(gradients, finite)
            return verdict._replace(update=verdict.update * 2)

    class Called(gs.AgrEMA):
        def __call__(self, gradients):
            return super().__call__(gradients) * 3

    for rule, factor in ((Doubled(), 2), (Called(), 3)):
        model = Linear()
        expected = gs.AgrSum()(GOOD) * factor
        gs.backward(model.losses(GOOD, ()), model.parameters(), rule)
        assert torch.equal(torch.cat([w.grad for w in model.weights]), expected)
        assert torch.equal(type(rule)()(GOOD), expected)
