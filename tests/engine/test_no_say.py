"""Rows that a domain has no say on: rules that ask all domains to agree ask the others."""

import pytest
import torch

import gradsurgery as gs
from gradsurgery.engine.abstaining import Abstaining, with_votes
from gradsurgery.engine.accumulator import Accumulator, Update
from gradsurgery.errors import ArgumentError, NonFiniteError

NO_SAY = torch.tensor([[True, False, False], [False, False, True], [False, False, True]])


def gradients(dtype=torch.float32):
    """Of three domains for a weight [3, 40], zero on the rows that they have no say on."""
    drawn = torch.randn(3, 3, 40, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return drawn.masked_fill(NO_SAY[:, :, None], 0)


def weight_after(given, rule, **options):
    weight = torch.zeros_like(given[0], requires_grad=True)
    losses = ((g * weight).sum() for g in given)
    result = gs.backward(losses, [("w", weight)], rule, **options)
    return weight.grad, result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["agr-sum", "agr-ema", "and-mask"])
@pytest.mark.parametrize("form", [None, "without_triton"])
def test_the_others_decide(form, name, dtype, request):
    if form:
        request.getfixturevalue(form)
    given = gradients(dtype)
    found, result = weight_after(given, gs.rule(name), no_say={"w": NO_SAY})
    options, share = ({"reduction": "sum"}, 3) if name == "and-mask" else ({}, 1)
    asked = [gs.rule(name, **options)(part) for part in (given[[1, 2], 0], given[:, 1])]
    expected = torch.stack([*asked, given[0, 2]]) / share
    assert torch.equal(found, expected)
    signs = [given[[1, 2], 0].sign(), given[:, 1].sign()]
    agree = sum(int((s == s[0]).all(0).sum()) for s in signs) + 40
    assert result.agreeing == pytest.approx(agree / 120)


def test_counts_of_signs_are_those_of_the_first_that_has_a_say():
    """Over several steps, as one that asks the two domains alone."""
    rule, alone = (gs.rule("agr-ema", memory="counts") for _ in range(2))
    draw = torch.Generator().manual_seed(2)
    for _ in range(12):
        given = torch.randn(3, 3, 40, generator=draw).masked_fill(NO_SAY[:, :, None], 0)
        found, _ = weight_after(given, rule, no_say={"w": NO_SAY})
        assert torch.equal(found[0], alone(given[[1, 2], 0]))


def test_noise_is_of_the_size_of_what_agrees():
    given = gradients()
    found, _ = weight_after(given, gs.AgrRand(), no_say={"w": NO_SAY})
    expected, _ = weight_after(given, gs.AgrSum(), no_say={"w": NO_SAY})
    kept = expected != 0
    assert torch.equal(found[kept], expected[kept])
    assert 0.5 < found[~kept].std() / expected[kept].abs().mean() < 1.5


def test_a_gradient_that_is_there_is_a_say():
    given = gradients()
    given[1, 2, 0], given[0, 2, 0] = 1.0, -1.0
    found, _ = weight_after(given, gs.AgrSum(), no_say={"w": NO_SAY})
    assert found[2, 0] == 0
    assert torch.equal(found[2, 1:], given[0, 2, 1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["agr-sum", "agr-ema", "and-mask"])
@pytest.mark.parametrize("size", [1e-30, 1e-37, 1e-39])  # the last is no normal number
def test_gradients_of_any_size_make_votes(size, name, dtype):
    given = torch.full((3, 3, 40), size, dtype=dtype).masked_fill(NO_SAY[:, :, None], 0)
    given[:, :, ::2] *= -1
    found, result = weight_after(given, gs.rule(name), no_say={"w": NO_SAY})
    assert torch.equal(found.sign(), given.sum(0).sign())
    assert result.agreeing == 1


def test_rows_that_are_zero_wherever_there_is_a_say_are_no_agreement():
    """20 columns agree; 10 are zero in every domain and count nowhere; 10 are zero in one."""
    given = torch.ones(3, 3, 40).masked_fill(NO_SAY[:, :, None], 0)
    given[:, :, 20:30] = 0
    given[1, :2, 30:] = 0  # of two domains with a say on rows 0 and 1; row 2 has one
    found, result = weight_after(given, gs.AgrSum(), no_say={"w": NO_SAY})
    assert result.agreeing == pytest.approx((20 + 20 + 30) / 90)
    assert not found[:2, 20:].any()
    assert (found[2, 30:] == 1).all()


@pytest.mark.parametrize("rule", ["pcgrad", "sum", "graddrop"])
def test_to_other_rules_a_zero_is_a_zero(rule):
    given = gradients()
    found, _ = weight_after(given, gs.rule(rule), no_say={"w": NO_SAY})
    expected, _ = weight_after(given, gs.rule(rule))
    assert torch.equal(found, expected)


def test_what_is_not_finite_is_of_the_domain_that_it_is_of():
    given = gradients()
    given[1, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="domain 1") as caught:
        weight_after(given, gs.AgrSum(), no_say={"w": NO_SAY})
    assert caught.value.domain == 1


def test_a_domain_that_does_not_reach_the_parameter():
    given = gradients()
    weight, other = (torch.zeros(3, 40, requires_grad=True) for _ in range(2))
    losses = ((given[d] * (weight if d else other)).sum() for d in range(3))
    mask = NO_SAY | torch.tensor([[True], [False], [False]])
    gs.backward(losses, [("w", weight), ("o", other)], gs.AgrSum(), no_say={"w": mask})
    expected = gs.AgrSum()(given[1:].flatten(1)).view(3, 40)
    assert torch.equal(weight.grad[:2], expected[:2])
    assert torch.equal(weight.grad[2], torch.zeros(40))  # nobody has a say on it
    assert torch.equal(other.grad, torch.zeros(3, 40))


class Kept(Accumulator):
    at_once = False

    def __init__(self, parameters):
        super().__init__(parameters)
        self.found = []

    def receive(self, position, domain, gradient):
        raise AssertionError

    def receive_domain(self, domain, gradients):
        self.found.append((domain, gradients))

    def finish(self, domains, *, poison):
        return Update([])


def test_whole_domains_are_handed_on_in_order():
    given = gradients()
    parameters = [torch.zeros(3, 40), torch.zeros(2)]
    kept = Kept(parameters)
    abstaining = Abstaining(kept, parameters, {0: NO_SAY})
    for domain in range(3):
        abstaining.receive_domain(domain, [given[domain], torch.full((2,), float(domain))])
    assert [domain for domain, _ in kept.found] == [0, 1, 2]
    for domain, (first, second) in enumerate(both for _, both in kept.found):
        assert torch.equal(second, torch.full((2,), float(domain)))
        assert torch.equal(first[~NO_SAY[domain]], given[domain][~NO_SAY[domain]])
    assert torch.equal(kept.found[0][1][0][0].sign(), given[1, 0].sign())
    assert abstaining.finish(3, poison=False) == Update([])
    with pytest.raises(ArgumentError, match="no_say is of 3 domains, found 4"):
        abstaining.receive_domain(3, [given[0], torch.zeros(2)])


def test_votes_are_in_the_precision_of_the_gradients():
    (first, vote) = with_votes([torch.ones(1, 2).bfloat16(), None], NO_SAY[[1, 0], :1])
    assert first.dtype == vote.dtype == torch.bfloat16
    assert (vote > 0).all()


def test_a_name_that_no_parameter_has_is_said_and_one_of_a_frozen_parameter_is_none_of_them():
    given = gradients()
    for rule in (gs.AgrSum(), gs.Sum()):
        with pytest.raises(ArgumentError, match="no_say is by the names of parameters, found 'v'"):
            weight_after(given, rule, no_say={"w": NO_SAY, "v": NO_SAY})
    weight, frozen = torch.zeros(3, 40, requires_grad=True), torch.zeros(3, 40)
    losses = [(g * weight).sum() for g in given]
    pairs = [("w", weight), ("head", frozen)]
    gs.backward(losses, pairs, gs.AgrSum(), no_say={"head": NO_SAY})
    assert torch.equal(weight.grad.flatten(), gs.AgrSum()(given.flatten(1)))
    tied = [("w", weight), ("v", weight)]  # is one parameter, by its first name
    with pytest.raises(ArgumentError, match="found 'v', which none has"):
        gs.backward([(g * weight).sum() for g in given], tied, gs.AgrSum(), no_say={"v": NO_SAY})
    gs.backward([(g * weight).sum() for g in given], [weight], gs.AgrSum(), no_say={"0": NO_SAY})


def test_no_say_that_does_not_fit():
    given = gradients()
    with pytest.raises(ArgumentError, match=r"no_say of w is bool \[domains, rows\]"):
        weight_after(given, gs.AgrSum(), no_say={"w": NO_SAY[:, :2]})
    for mask in (NO_SAY[:2], NO_SAY[[0, 1, 2, 2]]):
        with pytest.raises(ArgumentError, match=f"no_say is of {len(mask)} domains, found 3"):
            weight_after(given, gs.AgrSum(), no_say={"w": mask})
    with pytest.raises(ArgumentError, match="lost in float16"):
        weight_after(given.half(), gs.AgrSum(), no_say={"w": NO_SAY})


def test_a_head_of_one_task_alone_is_learned_where_the_others_have_no_say():
    draw = torch.Generator().manual_seed(4)
    x, trunk = torch.randn(8, 5, generator=draw), torch.randn(5, 6, generator=draw)
    start = [trunk, *(torch.randn(6, 2, generator=draw) for _ in range(3))]

    def tasks():
        weights = [weight.clone().requires_grad_() for weight in start]
        features = (x @ weights[0]).tanh()
        losses = [(features @ head).square().mean() for head in weights[1:]]
        named = list(zip(["trunk", "heads.0", "heads.1", "heads.2"], weights, strict=True))
        return named, losses

    named, losses = tasks()
    alone = [
        torch.autograd.grad(loss, [named[0][1], head], retain_graph=True)
        for loss, (_, head) in zip(losses, named[1:], strict=True)
    ]
    others = {f"heads.{task}": torch.arange(3)[:, None].ne(task).expand(3, 6) for task in range(3)}
    gs.backward(losses, named, gs.AgrSum(), no_say=others)
    for (_, head), (_, expected) in zip(named[1:], alone, strict=True):
        assert torch.equal(head.grad, expected)
    by_hand = torch.stack([gradient for gradient, _ in alone])
    agree = (by_hand.sign() == by_hand.sign()[0]).all(0)
    torch.testing.assert_close(named[0][1].grad, by_hand.sum(0) * agree)

    named, losses = tasks()
    with pytest.warns(UserWarning, match=r"heads\.0 \(and 2 more\) .* 1 of 3 .* no_say"):
        gs.backward(losses, named, gs.AgrSum())
    assert not named[1][1].grad.any()
    named, losses = tasks()
    gs.backward(losses, named, gs.PCGrad())  # which projects, and needs no agreement
    assert named[1][1].grad.any()
