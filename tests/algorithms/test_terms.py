"""What sets a method apart reaches the parameters: without its term it is plain Deep-All."""

import pytest
import torch
from sklearn.metrics.pairwise import rbf_kernel
from torch import Tensor

from gradsurgery.algorithms.objectives.alignment import kernel
from tests.algorithms import oracles
from tests.algorithms.oracles import Memory

STRENGTHS = {
    "irm": "irm.penalty",
    "vrex": "vrex.penalty",
    "coral": "coral.penalty",
    "mmd": "mmd.penalty",
    "fishr": "fishr.penalty",
    "sd": "sd.penalty",
    "ib-erm": "ib-erm.penalty",
    "dann": "dann.penalty",
    "cdann": "cdann.penalty",
    "mldg": "mldg.beta",
    "group-dro": "group-dro.eta",
    "gradnorm": "gradnorm.learning_rate",
}


def gradient(built, name: str, strength: float | None = None, domains: int = 3) -> Tensor:
    """The update of the second step from the initial parameters (the first is on other data)."""
    settings = {} if strength is None else {STRENGTHS[name]: strength}
    algorithm = built(name, anneal=0, settings=settings)
    for step in (1, 2):
        model = oracles.network()
        data = oracles.batches(domains, seed=step)
        algorithm.step(model, data, oracles.sgd(model.parameters()), step=step)
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("name", sorted(STRENGTHS))
def test_without_its_term_a_method_is_deep_all(name, built):
    torch.testing.assert_close(gradient(built, name, 0.0), gradient(built, "deep-all"))


@pytest.mark.parametrize("domains", [2, 3])
@pytest.mark.parametrize("name", sorted(STRENGTHS))
def test_with_it_the_step_is_another(name, domains, built):
    plain = gradient(built, "deep-all", domains=domains)
    changed = gradient(built, name, domains=domains) - plain  # by the default strength
    assert changed.norm() > 1e-4 * plain.norm()


def added(built, name: str, strength: float) -> Tensor:
    return gradient(built, name, strength) - gradient(built, "deep-all")


def test_irms_term_is_the_penaltys_gradient(built):
    model, data = oracles.network(), oracles.batches(3, seed=2)
    penalty = sum(oracles.irm_penalty(model(x), y) for x, y in data) / 3
    torch.testing.assert_close(added(built, "irm", 5.0), 5 * oracles.flat_gradient(penalty, model))


def test_ib_irm_without_its_own_term_is_irm(built):
    without = built("ib-irm", anneal=0, settings={"ib-irm.ib_penalty": 0})
    data, updates = oracles.batches(3), []
    for algorithm in (without, built("ib-irm", anneal=0), built("irm", anneal=0)):
        model = oracles.network()
        algorithm.step(model, data, oracles.sgd(model.parameters()), step=1)
        updates.append(oracles.flat_parameters(model))
    torch.testing.assert_close(updates[0], updates[2])
    assert not torch.allclose(updates[1], updates[2])


def test_vrexs_term_is_the_variances_gradient(built):
    model, data = oracles.network(), oracles.batches(3, seed=2)
    variance = torch.stack(oracles.risks(model, data)).var(correction=0)
    expected = 5 * oracles.flat_gradient(variance, model)
    torch.testing.assert_close(added(built, "vrex", 5.0), expected)


def test_fishrs_term_is_the_distance_of_the_averages(built):
    model, memory = oracles.network(), Memory()
    oracles.fishr_penalty(model, oracles.batches(3, seed=1), 0.95, memory)
    penalty = oracles.fishr_penalty(model, oracles.batches(3, seed=2), 0.95, memory)
    expected = 5 * oracles.flat_gradient(penalty, model)
    torch.testing.assert_close(added(built, "fishr", 5.0), expected)


def test_mldgs_term_is_the_gradient_after_the_inner_step(built, drawn):
    changed = added(built, "mldg", 0.5)
    model, data = oracles.network(), oracles.batches(3, seed=2)
    with_term, without = (
        torch.stack(oracles.mldg_gradients(model, data, drawn.ring, beta)).mean(0)
        for beta in (0.5, 0.0)
    )
    torch.testing.assert_close(changed, with_term - without)
    # Not the gradient at θ, which an inner step that never happened would give.
    at_start = 0.5 * oracles.flat_gradient(sum(oracles.risks(model, data)) / 3, model)
    assert (changed - at_start).norm() > 1e-2 * at_start.norm()


def test_group_dros_weights_grow_with_the_losses_over_the_steps(built):
    model, memory = oracles.network(), Memory()
    for step in (1, 2):
        q = oracles.group_dro_weights(model, oracles.batches(3, seed=step), 0.5, memory)
    risks = oracles.risks(model, oracles.batches(3, seed=2))
    expected = sum((w - 1 / 3) * risk for w, risk in zip(q, risks, strict=True))
    changed = added(built, "group-dro", 0.5)
    torch.testing.assert_close(changed, oracles.flat_gradient(expected, model))


def test_group_dros_weights_do_not_overflow(built):
    model = oracles.network()
    algorithm = built("group-dro", settings={"group-dro.eta": 1e6})
    for step in (1, 2):
        algorithm.step(model, oracles.batches(3), oracles.sgd(model.parameters()), step=step)
    q = algorithm.state_dict()["objective.q"]
    assert q.isfinite().all()
    assert q.sum().item() == pytest.approx(1)


def test_gradnorms_weights_stay_positive_with_their_sum(built):
    model = oracles.network()
    algorithm = built("gradnorm", settings={"gradnorm.learning_rate": 10})
    for step in range(1, 6):
        data = oracles.batches(3, seed=step)
        algorithm.step(model, data, oracles.sgd(model.parameters()), step=step)
        weights = algorithm.state_dict()["objective.weights"]
        assert (weights > 0).all()
        assert weights.sum().item() == pytest.approx(3)


def test_mmds_kernel_knows_small_distances_far_from_the_origin():
    generator = torch.Generator().manual_seed(0)
    a, b = 1000 + torch.randn(2, 5, 64, generator=generator) / 50
    expected = sum(rbf_kernel(a.double(), b.double(), gamma=10.0**s) for s in range(-3, 4))
    torch.testing.assert_close(kernel(a, b).double(), torch.as_tensor(expected), rtol=1e-3, atol=0)
    assert torch.equal(kernel(a, a).diagonal(), torch.full((5,), 7.0))


@pytest.mark.parametrize("name", ["coral", "mmd"])
def test_domains_with_the_same_images_are_not_apart(name, built):
    images, labels = oracles.batches(1)[0]
    model, data = oracles.network(), [(images, labels)] * 3
    result = built(name, settings={f"{name}.penalty": 100}).step(
        model, data, oracles.sgd(model.parameters()), step=1
    )
    risk = oracles.risks(oracles.network(), data[:1])[0].item()
    assert result.losses.tolist() == pytest.approx([risk] * 3)
