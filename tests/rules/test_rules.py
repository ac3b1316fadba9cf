"""What holds for every rule."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gradsurgery as gs
from gradsurgery.errors import ArgumentError, NonFiniteError
from gradsurgery.rules import RULES
from tests.rules.matrices import matrices

NAMES = st.sampled_from(sorted(RULES))
SURGERY = ["agr-sum", "agr-rand", "pcgrad"]


def seeded(name: str) -> gs.Rule:
    return gs.rule(name, generator=torch.Generator().manual_seed(7))


@given(matrices(min_domains=1))
def test_sum_and_mean(gradients):
    torch.testing.assert_close(gs.Sum()(gradients), gradients.sum(0))
    torch.testing.assert_close(gs.Mean()(gradients), gradients.mean(0))


@given(NAMES, matrices())
def test_updates_are_finite_and_of_the_right_shape(name, gradients):
    update = seeded(name)(gradients)
    assert update.shape == gradients.shape[1:]
    assert update.dtype == gradients.dtype
    assert update.isfinite().all()


@given(NAMES, matrices(), st.sampled_from([0.25, 2.0, 1024.0]))
def test_scaling_the_gradients_scales_the_update(name, gradients, factor):
    # powers of two, so that no rounding differs
    torch.testing.assert_close(
        seeded(name)(gradients * factor), seeded(name)(gradients) * factor, rtol=1e-9, atol=1e-12
    )


@given(st.sampled_from(["sum", "mean", "agr-sum"]), matrices(), st.randoms(use_true_random=False))
def test_the_order_of_the_domains_does_not_matter(name, gradients, random):
    order = list(range(len(gradients)))
    random.shuffle(order)
    torch.testing.assert_close(seeded(name)(gradients[order]), seeded(name)(gradients))


@given(NAMES, matrices(min_domains=1, max_domains=1), st.integers(2, 6))
def test_equal_rows_give_their_sum_or_mean(name, gradient, domains):
    update = seeded(name)(gradient.repeat(domains, 1))
    torch.testing.assert_close(update, gradient[0] * (1 if name == "mean" else domains))


@pytest.mark.parametrize("name", sorted(RULES))
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_raises_and_names_the_domain(name, bad):
    gradients = torch.ones(3, 5)
    gradients[1, 2] = bad
    gradients[0, 2] = -1.0
    with pytest.raises(NonFiniteError, match=r"domain 1 is .* at component 2") as caught:
        seeded(name)(gradients)
    assert caught.value.domain == 1


def test_a_sum_that_overflows_is_not_taken_for_a_bad_gradient():
    gradients = torch.full((2, 3), 3e38)
    gradients[1, 0] = -1.0
    assert gs.AgrSum()(gradients).tolist() == [0.0, float("inf"), float("inf")]


@pytest.mark.parametrize("name", SURGERY)
def test_surgery_needs_two_domains(name):
    with pytest.raises(ArgumentError, match=f"{name} compares .* at least 2 domains, found 1"):
        seeded(name)(torch.ones(1, 3))


@pytest.mark.parametrize("name", sorted(RULES))
@pytest.mark.parametrize("gradients", [torch.ones(3), torch.ones(2, 3, dtype=torch.int64)])
def test_wrong_shape_or_type(name, gradients):
    with pytest.raises(ArgumentError, match=r"expects floating point gradients of shape"):
        seeded(name).check_matrix(gradients)


def test_rules_by_name():
    assert isinstance(gs.rule("agr-sum", reduction="mean"), gs.AgrSum)
    with pytest.raises(
        ArgumentError, match=r"unknown rule 'agrsum'; the rules are sum, mean, agr-"
    ):
        gs.rule("agrsum")
    with pytest.raises(ArgumentError, match=r"rule 'sum' has no option 'tau'; it has: none"):
        gs.rule("sum", tau=0.5)
    with pytest.raises(ArgumentError, match=r"it has: reduction, zero_agrees"):
        gs.rule("agr-rand", tau=0.5)


@pytest.mark.parametrize("name", ["agr-rand", "pcgrad"])
def test_random_rules_draw_from_their_generator_alone(name):
    angles = torch.tensor([0.0, 2.1, 4.0])
    gradients = torch.stack([angles.cos(), angles.sin()], 1)
    state = torch.get_rng_state()
    first = [seeded(name)(gradients) for _ in range(2)]
    assert torch.equal(*first)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(gs.rule(name)(gradients), gs.rule(name)(gradients))
