"""When a penalty gets its full weight, and when the optimiser is told to start anew."""

import pytest
import torch

from tests.algorithms import oracles
from tests.algorithms.oracles import Memory

BEFORE = {"irm": 1.0, "vrex": 1.0, "fishr": 0.0, "ib-erm": 0.0}


def domainbed(name: str, anneal: int, full: float, updates: int) -> tuple[list[float], list[int]]:
    """Weights, and the updates that reset the optimiser, as DomainBed's `update` has them."""
    weights, resets = [], []
    for update_count in range(updates):
        weights.append(full if update_count >= anneal else BEFORE[name])
        if update_count == anneal:
            resets.append(update_count)
    return weights, resets


def penalised(name: str, model, data, weight: float, memory: Memory) -> torch.Tensor:
    if name == "irm":
        return torch.stack(oracles.irm_losses(model, data, weight)).mean()
    if name == "vrex":
        return oracles.vrex(model, data, weight)
    if name == "ib-erm":
        penalty = oracles.feature_variance(model, data)
    else:
        penalty = oracles.fishr_penalty(model, data, 0.95, memory)
    return torch.stack(oracles.risks(model, data)).mean() + weight * penalty


@pytest.mark.parametrize("anneal", [0, 1, 2, 5, 9])
@pytest.mark.parametrize("name", sorted(BEFORE))
def test_weights_and_resets_are_domainbeds(name, anneal, built):
    settings = {f"{name}.anneal": anneal, f"{name}.penalty": 6}
    algorithm, model, memory = built(name, settings=settings), oracles.network(), Memory()
    weights, resets = domainbed(name, anneal, 6.0, 7)
    for update_count, weight in enumerate(weights):
        step = update_count + 1
        data = oracles.batches(3, seed=step)
        still = torch.optim.SGD(model.parameters(), lr=0.0)
        losses = algorithm.step(model, data, still, step=step).losses
        expected = penalised(name, model, data, weight, memory).item()
        assert losses.mean().item() == pytest.approx(expected, rel=1e-9)
        model.zero_grad()
    told = [count for count in range(7) if algorithm.restarts_optimizer(count + 1)]
    assert told == [count for count in resets if count > 0]  # at the first there is no state yet


@pytest.mark.parametrize("name", ["deep-all", "mldg", "mixup", "group-dro", "gradnorm", "fish"])
def test_no_other_method_restarts_the_optimiser(name, built):
    algorithm = built(name)
    assert not any(algorithm.restarts_optimizer(step) for step in range(1, 2000))


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("irm", 501),
        ("vrex", 501),
        ("fishr", 1501),
        ("eqrm", 2501),
        ("ib-erm", 501),
        ("ib-irm", 501),
    ],
)
def test_the_default_steps_are_domainbeds(name, step, built):
    algorithm = built(f"{name}+agr-sum")
    assert [s for s in range(1, 3001) if algorithm.restarts_optimizer(s)] == [step]


def test_ib_irm_starts_anew_at_the_end_of_either_annealing(built):
    settings = {"ib-irm.anneal": 0, "ib-irm.ib_anneal": 4}
    algorithm = built("ib-irm", settings=settings)
    assert [step for step in range(1, 9) if algorithm.restarts_optimizer(step)] == [5]
    algorithm = built("ib-irm", settings={"ib-irm.anneal": 2, "ib-irm.ib_anneal": 4})
    assert [step for step in range(1, 9) if algorithm.restarts_optimizer(step)] == [3, 5]
    assert len({algorithm.stage(step) for step in range(1, 9)}) == 5
    assert "ib-irm does what irm does for the first 4 steps" in algorithm.idle_reason(4)
    assert algorithm.idle_reason(5) is None
