"""Steps of every objective, by the rule `mean`, against its formula differentiated by autograd."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gradsurgery.errors import NonFiniteError
from tests.algorithms import oracles
from tests.algorithms.oracles import Drawn, Memory

# With `anneal` = 1 the second step is the first with the full penalty.
SETTINGS = {
    "irm": {"irm.anneal": 1, "irm.penalty": 7},
    "vrex": {"vrex.anneal": 1, "vrex.penalty": 3},
    "coral": {"coral.penalty": 4},
    "mmd": {"mmd.penalty": 4},
    "fishr": {"fishr.anneal": 1, "fishr.penalty": 50, "fishr.ema": 0.75},
    "sd": {"sd.penalty": 0.7},
    "ib-erm": {"ib-erm.anneal": 1, "ib-erm.penalty": 5},
    "ib-irm": {"ib-irm.anneal": 1, "ib-irm.penalty": 7, "ib-irm.ib_anneal": 2}
    | {"ib-irm.ib_penalty": 5},
    "eqrm": {"eqrm.anneal": 1, "eqrm.quantile": 0.9},
    "mldg": {"mldg.beta": 0.5},
    "mixup": {"mixup.alpha": 0.5},
    "group-dro": {"group-dro.eta": 0.3},
    "gradnorm": {"gradnorm.alpha": 1.5, "gradnorm.learning_rate": 0.1},
}


def mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


def annealed(step: int, before: float, after: float) -> float:
    return before if step == 1 else after


def gradnorm(model, data, memory):
    weights = oracles.grad_norm_weights(model, data, 1.5, 0.1, memory)
    return (weights * torch.stack(oracles.risks(model, data))).mean()


def group_dro(model, data, memory):
    q = oracles.group_dro_weights(model, data, 0.3, memory)
    return sum(w * risk for w, risk in zip(q, oracles.risks(model, data), strict=True))


def fishr(model, data, step, memory):
    penalty = oracles.fishr_penalty(model, data, 0.75, memory)
    return mean(oracles.risks(model, data)) + annealed(step, 0, 50) * penalty


def eqrm(model, data, step):
    risks = torch.stack(oracles.risks(model, data))
    return risks.mean() if step == 1 else oracles.kernel_quantile(risks, 0.9)


def ib_erm(model, data, step):
    penalty = oracles.feature_variance(model, data)
    return mean(oracles.risks(model, data)) + annealed(step, 0, 5) * penalty


def ib_irm(model, data, step):
    losses = oracles.irm_losses(model, data, annealed(step, 1, 7))
    return mean(losses) + (5 if step > 2 else 0) * oracles.feature_variance(model, data)


def aligned(model, data, distance):
    return mean(oracles.risks(model, data)) + 4 * oracles.alignment_penalty(model, data, distance)


OBJECTIVES: dict[str, Callable[..., Tensor]] = {
    "deep-all": lambda model, data, *_: mean(oracles.risks(model, data)),
    "irm": lambda model, data, step, *_: mean(
        oracles.irm_losses(model, data, annealed(step, 1, 7))
    ),
    "vrex": lambda model, data, step, *_: oracles.vrex(model, data, annealed(step, 1, 3)),
    "mixup": lambda model, data, step, memory, drawn: mean(
        oracles.mixup_losses(model, data, drawn)
    ),
    "group-dro": lambda model, data, step, memory, drawn: group_dro(model, data, memory),
    "coral": lambda model, data, *_: aligned(model, data, oracles.coral_distance),
    "mmd": lambda model, data, *_: aligned(model, data, oracles.mmd_distance),
    "fishr": lambda model, data, step, memory, drawn: fishr(model, data, step, memory),
    "sd": lambda model, data, *_: oracles.sd(model, data, 0.7),
    "ib-erm": lambda model, data, step, *_: ib_erm(model, data, step),
    "ib-irm": lambda model, data, step, *_: ib_irm(model, data, step),
    "eqrm": lambda model, data, step, *_: eqrm(model, data, step),
    "gradnorm": lambda model, data, step, memory, drawn: gradnorm(model, data, memory),
}


def expected_gradient(
    name: str, model: torch.nn.Module, data, step: int, memory: Memory, drawn: Drawn
) -> Tensor:
    if name == "mldg":
        return mean_rows(oracles.mldg_gradients(model, data, drawn.ring, 0.5))
    return oracles.flat_gradient(OBJECTIVES[name](model, data, step, memory, drawn), model)


def mean_rows(rows: list[Tensor]) -> Tensor:
    return torch.stack(rows).mean(0)


@pytest.mark.parametrize("batch_norm", ["frozen", "per-domain"])
@pytest.mark.parametrize("domains", [2, 3, 5])
@pytest.mark.parametrize("name", [*OBJECTIVES, "mldg"])
def test_the_steps_are_those_of_the_formula(name, domains, batch_norm, built, drawn):
    algorithm = built(name, settings=SETTINGS.get(name), batch_norm=batch_norm)
    model, memory = oracles.network(), Memory()
    optimizer = oracles.sgd(model.parameters())
    for step in range(1, 6):
        data = oracles.batches(domains, seed=step)
        before = oracles.network()
        before.load_state_dict(model.state_dict())
        algorithm.step(model, data, optimizer, step=step)
        gradient = expected_gradient(name, before, data, step, memory, drawn)
        moved = oracles.flat_parameters(before) - oracles.LEARNING_RATE * gradient
        torch.testing.assert_close(oracles.flat_parameters(model), moved, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("domains", [2, 3, 5])
def test_fish_takes_a_part_of_the_steps_in_turn(domains, built):
    algorithm = built("fish", settings={"fish.meta_lr": 0.25})
    twin = torch.Generator().manual_seed(7)
    model = oracles.network()
    for step in (1, 2):
        data = oracles.batches(domains, seed=step)
        before = oracles.network()
        before.load_state_dict(model.state_dict())
        result = algorithm.step(model, data, oracles.sgd(model.parameters()), step=step)
        order = torch.randperm(domains, generator=twin).tolist()
        expected = oracles.fish(before, data, order, 0.25)
        torch.testing.assert_close(oracles.flat_parameters(model), expected)
        first = oracles.risks(before, data)[order[0]].item()
        assert result.losses[order[0]].item() == pytest.approx(first)


def test_fish_keeps_the_state_of_the_runs_optimiser(built):
    model = oracles.network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    algorithm = built("fish")
    for step in (1, 2):
        algorithm.step(model, oracles.batches(3), optimizer, step=step)
    assert {state["step"].item() for state in optimizer.state.values()} == {6}


def test_fish_leaves_the_model_as_it_was_where_a_later_step_is_not_finite(built):
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.BatchNorm1d(12), torch.nn.Linear(12, 2)
    )
    order = torch.randperm(3, generator=torch.Generator().manual_seed(7)).tolist()
    images = [torch.ones(4, 3, 2, 2) * d for d in range(3)]
    images[order[-1]] = images[order[-1]] * torch.nan
    data = [(x + torch.rand(x.shape), torch.arange(4) % 2) for x in images]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(NonFiniteError, match=f"domain {order[-1]}"):
        built("fish").step(model, data, oracles.sgd(model.parameters()), step=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_mldgs_inner_step_is_a_fresh_one_of_the_runs_optimiser(built, drawn):
    def adam(parameters):
        return torch.optim.Adam(parameters, lr=0.05, weight_decay=0.1)

    model, outer = oracles.network(), oracles.sgd
    algorithm = built("mldg", make_optimizer=adam)
    optimizer = outer(model.parameters())
    for step in (1, 2):
        data = oracles.batches(3, seed=step)
        before = oracles.network()
        before.load_state_dict(model.state_dict())
        algorithm.step(model, data, optimizer, step=step)
        gradient = mean_rows(oracles.mldg_gradients(before, data, drawn.ring, 1.0, adam))
        moved = oracles.flat_parameters(before) - oracles.LEARNING_RATE * gradient
        torch.testing.assert_close(oracles.flat_parameters(model), moved)


TOLD = [name for name in OBJECTIVES if name != "gradnorm"]


@pytest.mark.parametrize("name", TOLD)
def test_the_mean_of_the_losses_told_is_the_objective(name, built, drawn):
    model, data = oracles.network(), oracles.batches(3)
    objective = OBJECTIVES[name](model, data, 1, Memory(), drawn) if name != "mixup" else None
    algorithm = built(name, settings=SETTINGS.get(name))
    losses = algorithm.step(model, data, oracles.sgd(model.parameters()), step=1).losses
    assert losses.shape == (3,)
    assert not losses.requires_grad
    if name == "mixup":
        objective = OBJECTIVES[name](oracles.network(), data, 1, Memory(), drawn)
    assert losses.mean().item() == pytest.approx(objective.item())


@pytest.mark.parametrize("name", ["irm", "coral", "ib-erm", "ib-irm"])
def test_two_images_of_a_domain_are_needed(name, built):
    model = oracles.network()
    with pytest.raises(ValueError, match="found a batch of 1 image; use a batch size of at least"):
        built(name).step(model, oracles.batches(2, 1), oracles.sgd(model.parameters()), step=1)
