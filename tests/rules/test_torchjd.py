"""Both ways between our rules and TorchJD's aggregators, and agreement where both have a rule."""

import sys

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import gradsurgery as gs
from gradsurgery.errors import ArgumentError, MissingPackageError
from tests import oracles
from tests.engine.models import MODELS, domain_batches, separate_gradients
from tests.rules.matrices import matrices

aggregation = pytest.importorskip("torchjd.aggregation", reason="torchjd is not installed")


def theirs(name: str, seed: int = 7, **options) -> gs.Rule:
    return gs.rule(f"torchjd:{name}", generator=torch.Generator().manual_seed(seed), **options)


def ours(name: str, seed: int = 7, **options) -> gs.Rule:
    return gs.rule(name, generator=torch.Generator().manual_seed(seed), **options)


@given(st.sampled_from(["Mean", "Sum"]), matrices())
def test_an_aggregator_is_a_rule(name, gradients):
    torch.testing.assert_close(theirs(name)(gradients), ours(name.lower())(gradients))


def test_options_are_the_aggregators():
    rule = theirs("TrimmedMean", trim_number=1)
    assert rule.name == "torchjd:TrimmedMean"
    assert rule(torch.tensor([[1.0], [2.0], [9.0]])).tolist() == [2.0]
    with pytest.raises(ArgumentError, match=r"'UPGrade'; torchjd.aggregation has .*MGDA.*UPGrad"):
        theirs("UPGrade")
    with pytest.raises(ArgumentError, match="'Weighting'; torchjd"):
        theirs("Weighting")
    with pytest.raises(ArgumentError, match=r"no hyperparameter 'trim'; it has: trim_number"):
        theirs("TrimmedMean", trim=1)
    with pytest.raises(ArgumentError, match=r"torchjd:CAGrad: missing .*'c'"):
        theirs("CAGrad")
    with pytest.raises(ArgumentError, match=r"torchjd:TrimmedMean: trim_number must be non-neg"):
        theirs("TrimmedMean", trim_number=-1)


def test_missing_packages_are_named_with_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchjd", None)
    for call in (lambda: gs.rule("torchjd:UPGrad"), lambda: gs.as_aggregator(gs.AgrSum())):
        with pytest.raises(MissingPackageError, match=r'pip install "gradsurgery\[torchjd\]"'):
            call()
    monkeypatch.undo()
    monkeypatch.setattr("torchjd._mixins.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"torchjd:UPGrad: .* pip install"):
        gs.rule("torchjd:UPGrad")


def test_random_aggregators_draw_from_our_generator():
    gradients = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    rule = theirs("Random")
    first, second = rule(gradients), rule(gradients)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, second)
    assert torch.equal(theirs("Random")(gradients), first)
    assert torch.equal(gs.rule("torchjd:Random")(gradients), gs.rule("torchjd:Random")(gradients))


@pytest.mark.parametrize("name", ["pcgrad", "mgda", "agr-sum", "mean"])
def test_an_aggregator_of_ours_is_not_differentiable(name):
    matrix = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], requires_grad=True)
    assert not gs.as_aggregator(gs.rule(name))(matrix).requires_grad


def test_state_that_torchjd_cannot_restore_is_said():
    assert theirs("UPGrad").state_dict() == {}
    with pytest.raises(ArgumentError, match="torchjd:GradVac keeps a state that cannot be saved"):
        theirs("GradVac").state_dict()


@pytest.mark.parametrize("name", ["UPGrad", "Random", "AlignedMTL"])
def test_aggregators_in_backward(name):
    network = MODELS["mlp"]()
    batches = domain_batches(3)
    gradients = separate_gradients(network, batches)
    losses = (torch.nn.functional.cross_entropy(network(x), y) for x, y in batches)
    gs.backward(losses, network.parameters(), theirs(name))
    update = torch.cat([p.grad.reshape(-1) for p in network.parameters()])
    torch.testing.assert_close(update, theirs(name)(gradients), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["agr-sum", "pcgrad", "cagrad", "median"])
def test_rules_in_torchjd(name):
    from torchjd.autojac import backward, jac_to_grad

    network = MODELS["mlp"]()
    batches = domain_batches(3)
    gradients = separate_gradients(network, batches)
    losses = [torch.nn.functional.cross_entropy(network(x), y) for x, y in batches]
    backward(losses)
    weights = jac_to_grad(list(network.parameters()), gs.as_aggregator(ours(name)))
    update = torch.cat([p.grad.reshape(-1) for p in network.parameters()])
    torch.testing.assert_close(update, ours(name)(gradients), rtol=1e-4, atol=1e-6)
    if name in ("pcgrad", "cagrad"):
        torch.testing.assert_close(weights @ gradients, update, rtol=1e-4, atol=1e-6)


def test_a_rule_without_enough_rows_raises_in_torchjd():
    for rule in (gs.PCGrad(), gs.AgrSum()):
        with pytest.raises(ArgumentError, match="at least 2 domains, found 1"):
            gs.as_aggregator(rule)(torch.ones(1, 2))


@given(matrices(max_domains=2))
def test_pcgrad_of_two_domains(gradients):
    torch.testing.assert_close(ours("pcgrad")(gradients), theirs("PCGrad")(gradients))


def test_pcgrad_of_three_domains_reaches_the_same_results():
    angles = torch.tensor([0.0, 2.1, 4.0]).double()
    gradients = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0], [2.0], [0.7]])
    allowed = {tuple(round(x, 9) for x in r) for r in oracles.pcgrad_results(gradients.tolist())}
    for rule in (ours("pcgrad"), theirs("PCGrad")):
        assert {tuple(round(x, 9) for x in rule(gradients).tolist()) for _ in range(200)} == allowed


@given(matrices(), st.integers(0, 9))
def test_graddrop_with_the_same_draws(gradients, seed):
    assume((gradients != 0).any(0).all())  # theirs is NaN where all are zero
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        expected = aggregation.GradDrop()(gradients)
    torch.testing.assert_close(ours("graddrop", seed)(gradients), expected)


@given(st.integers(0, 2), st.data())
def test_trimmed_mean(trim, data):
    gradients = data.draw(matrices(min_domains=2 * trim + 1, max_domains=7))
    torch.testing.assert_close(
        ours("trimmed-mean", trim=trim)(gradients),
        theirs("TrimmedMean", trim_number=trim)(gradients),
    )


def test_gradvac_of_two_domains_over_several_steps():
    generator = torch.Generator().manual_seed(4)
    our, their = ours("gradvac", beta=0.3), theirs("GradVac", beta=0.3)
    for step in torch.randn(6, 2, 7, generator=generator, dtype=torch.float64):
        torch.testing.assert_close(our(step), their(step), rtol=1e-6, atol=1e-6)


@given(matrices(max_domains=2))
def test_mgda_of_two_domains(gradients):
    # where one step of their Frank-Wolfe iteration is exact
    scale = gradients.abs().max().item()
    torch.testing.assert_close(
        ours("mgda")(gradients), theirs("MGDA")(gradients), rtol=1e-6, atol=1e-6 * scale
    )


@pytest.mark.parametrize("domains", [3, 5])
def test_mgda_of_more_domains(domains):
    gradients = torch.randn(domains, 9, generator=torch.Generator().manual_seed(domains)).double()
    close = theirs("MGDA", epsilon=1e-6, max_iters=3000)(gradients)
    torch.testing.assert_close(ours("mgda")(gradients), close, rtol=0.02, atol=0.02)
    assert ours("mgda")(gradients).norm() <= close.norm() * (1 + 1e-12)


@pytest.mark.parametrize("c", [0.3, 0.5, 1.5])
@pytest.mark.parametrize("domains", [2, 3, 5])
def test_cagrad(domains, c):
    pytest.importorskip("cvxpy", reason="TorchJD's CAGrad needs cvxpy")
    generator = torch.Generator().manual_seed(domains)
    gradients = torch.randn(domains, 9, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        ours("cagrad", c=c)(gradients), theirs("CAGrad", c=c)(gradients), rtol=1e-3, atol=1e-3
    )
