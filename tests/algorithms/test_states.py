"""A method's state survives a file, and a state of something else is refused."""

import io
from typing import Any

import pytest
import torch
from torch import nn

from gradsurgery.algorithms import METHODS, OTHER_METHODS
from gradsurgery.errors import ArgumentError
from tests.algorithms import oracles

COMBINATIONS = [
    "dann+agr-rand",
    "fishr+gradvac",
    "group-dro+gradvac",
    "gradnorm+agr-rand",
    "mldg+graddrop",
]
STATES = {
    "group-dro": {"objective.q"},
    "fishr": {"objective.averages"},
    "gradnorm": {"objective.weights", "objective.first"},
    "dann": {"objective.discriminator", "objective.moments", "objective.steps"},
    "cdann": {"objective.discriminator", "objective.moments", "objective.steps"},
    "gradvac": {"rule.targets"},
    "agr-ema": {"rule.sums"},
    "fishr+gradvac": {"objective.averages", "rule.targets"},
}


class Run:
    """A model, its optimiser and a method, with draws that are seeded anew at every step."""

    def __init__(self, name: str, built: Any) -> None:
        self.generator = torch.Generator()
        self.model: nn.Module = oracles.network()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.05)
        self.algorithm = built(name, anneal=1, generator=self.generator)

    def step(self, step: int) -> None:
        self.generator.manual_seed(step)
        data = oracles.batches(3, seed=step)
        self.algorithm.step(self.model, data, self.optimizer, step=step)

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "algorithm": self.algorithm}


@pytest.mark.parametrize("name", [*METHODS, *OTHER_METHODS, *COMBINATIONS])
def test_the_third_step_after_a_file_is_the_third_step(name, built):
    whole = Run(name, built)
    for step in (1, 2):
        whole.step(step)
    file = io.BytesIO()
    torch.save({key: part.state_dict() for key, part in whole.parts().items()}, file)
    whole.step(3)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert set(state["algorithm"]) == STATES.get(name, set(state["algorithm"]))
    resumed = Run(name, built)
    for key, part in resumed.parts().items():
        part.load_state_dict(state[key])
    resumed.step(3)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    states = whole.algorithm.state_dict(), resumed.algorithm.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0] | states[1])


@pytest.mark.parametrize("name", [name for name in STATES if name != "fishr+gradvac"])
def test_the_state_matters(name, built):
    whole, forgetful = Run(name, built), Run(name, built)
    for step in (1, 2):
        whole.step(step)
    forgetful.model.load_state_dict(whole.model.state_dict())
    forgetful.optimizer.load_state_dict(whole.optimizer.state_dict())
    for run in (whole, forgetful):
        run.step(3)
    parameters = [oracles.flat_parameters(run.model) for run in (whole, forgetful)]
    assert not torch.equal(*parameters)


@pytest.mark.parametrize("name", [*METHODS, *OTHER_METHODS])
def test_before_the_first_step_there_is_no_state(name, built):
    run = Run(name, built)
    assert run.algorithm.state_dict() == {}
    run.algorithm.load_state_dict({})


def test_a_state_that_was_saved_does_not_change_with_the_next_step(built):
    for name in STATES:
        run = Run(name, built)
        run.step(1)
        saved = run.algorithm.state_dict()
        before = {key: value.clone() for key, value in saved.items()}
        run.step(2)
        assert all(torch.equal(saved[key], before[key]) for key in before)


@pytest.mark.parametrize("name", [*METHODS, *OTHER_METHODS])
@pytest.mark.parametrize("key", ["objective.no-such", "rule.no-such", "q"])
def test_the_state_of_another_method_is_refused(name, key, built):
    with pytest.raises(ArgumentError, match="found") as caught:
        built(name).load_state_dict({key: torch.ones(3)})
    assert "\n" not in str(caught.value)


def test_half_a_state_is_refused(built):
    with pytest.raises(ArgumentError, match="gradnorm holds weights, first, found weights; load"):
        built("gradnorm").load_state_dict({"objective.weights": torch.ones(3)})


@pytest.mark.parametrize(
    "name", ["group-dro", "fishr", "gradnorm", "dann", "cdann", "gradvac", "agr-ema"]
)
def test_the_state_of_other_domains_is_refused(name, built):
    run = Run(name, built)
    run.step(1)
    with pytest.raises(ArgumentError, match=r"build (the method anew|a new rule)"):
        run.algorithm.step(run.model, oracles.batches(4), run.optimizer, step=2)
