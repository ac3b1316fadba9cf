"""The averages of a run's weights that there are to choose from."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, final

from torch import nn
from typing_extensions import override

from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.errors import ArgumentError
from gradsurgery.hyperparameters import Hyperparameter, Setting, checked_values
from gradsurgery.training.swad import Swad
from gradsurgery.training.weight_average import NoAverage, WeightAverage, blend


@final
class ExponentialAverage(WeightAverage):
    """θ̄_t = decay·θ̄_{t−1} + (1 − decay)·θ_t, from θ̄_1 = θ_1, in memory of one more model.

    The averaged model is the one that is validated, selected and tested, so that the best and the
    last model of the run are averages. Running statistics of batch normalisation are averaged as
    the weights are; counters are copied. The weights weigh in for about 1 / (1 − decay) steps:
    100 by default, a tenth of the paper's run. With torch's 0.999 the very first weights would
    still make up 37 % of the average at the end of it.

    Source: `torch.optim.swa_utils.get_ema_multi_avg_fn`, whose formula this is.
    """

    hyperparameters = (
        Hyperparameter(
            "decay", 0.99, "share of the average that a step keeps", high=0.99999, source="PyTorch"
        ),
    )

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.model = deepcopy(model).requires_grad_(False)
        self._trained = model
        self._decay = decay

    def update(self, step: int) -> None:
        """Move towards the weights; the first are taken as they are."""
        keep = self._decay if step > 1 else 0.0
        blend(self.model.state_dict(), self._trained.state_dict(), keep)

    @override
    def validated(self, step: int, loss: float) -> None:
        pass

    @override
    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict()}

    @override
    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])


AVERAGES: dict[str, tuple[Hyperparameter, ...]] = {
    "none": (),
    "ema": ExponentialAverage.hyperparameters,
    "swad": Swad.hyperparameters,
}
"""The averages by name, and what `settings` may say about them."""


def build_average(configuration: RunConfiguration, model: nn.Module) -> WeightAverage:
    """The run's average of `model`, which is on its device already."""
    values = average_values(configuration)
    match configuration.average:
        case "none":
            return NoAverage(model)
        case "ema":
            return ExponentialAverage(model, **values)
        case "swad":
            return Swad(model, **values)


def average_values(configuration: RunConfiguration) -> dict[str, Any]:
    """The hyperparameters of the run's average: those in `settings`, the others by default.

    Raises `ArgumentError` for one out of its range, unknown, or of another average.
    """
    given, chosen = {}, configuration.average
    for key, value in average_settings(configuration.settings).items():
        owner, _, name = key.rpartition(".")
        if owner != chosen:
            raise ArgumentError(
                f"{key} is set and the average is {chosen!r}; choose average {owner!r}, "
                f"or leave {key} out"
            )
        given[name] = value
    return checked_values(chosen, AVERAGES[chosen], given)


def average_settings(settings: Mapping[str, float | str]) -> dict[str, float | str]:
    """The settings that are about an average; the others are the method's."""
    return {key: value for key, value in settings.items() if key.rpartition(".")[0] in AVERAGES}


def method_settings(settings: Mapping[str, float | str]) -> dict[str, float | str]:
    """The settings that are about the method."""
    apart = average_settings(settings)
    return {key: value for key, value in settings.items() if key not in apart}


def average_listing() -> list[Setting]:
    """Every hyperparameter of every average, as `settings` takes it."""
    return [h.listed(owner) for owner, known in AVERAGES.items() for h in known]
