from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from gradsurgery.backbones import Backbone
from gradsurgery.data import ImageSet
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.record import Record
from gradsurgery.errors import ArgumentError
from gradsurgery.training import TrainingProgress, train
from gradsurgery.training import learner as learner_module
from gradsurgery.training import outcome as outcome_module
from gradsurgery.training.averaging import (
    ExponentialAverage,
    NoAverage,
    average_settings,
    average_values,
    method_settings,
)
from gradsurgery.training.outcome import Evaluation

Configure = Callable[..., RunConfiguration]
Outcome = Callable[[Record, Path], tuple[dict[str, Any], bytes]]


class StopError(Exception):
    pass


def stop_at(step: int) -> Callable[[TrainingProgress], None]:
    def report(progress: TrainingProgress) -> None:
        if progress.stage == "training" and progress.done >= step:
            raise StopError

    return report


def test_the_exponential_average_is_the_closed_form_sum() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    average = ExponentialAverage(model, decay=0.75)
    stored = []
    for step in range(1, 8):
        with torch.no_grad():
            for value in model.state_dict().values():
                value.copy_(torch.randn(value.shape) if value.is_floating_point() else 10 * step)
        stored.append({name: value.clone() for name, value in model.state_dict().items()})
        average.update(step)
    # d⁶ θ_1 + (1 − d) Σ_{t=2}^7 d^(7−t) θ_t; the shares add up to 1
    shares = [0.75**6, *(0.25 * 0.75 ** (7 - t) for t in range(2, 8))]
    assert sum(shares) == pytest.approx(1)
    for name, value in average.model.state_dict().items():
        if value.is_floating_point():  # weights and running statistics
            parts = [s * weights[name].double() for s, weights in zip(shares, stored, strict=True)]
            torch.testing.assert_close(value.double(), sum(parts), rtol=1e-5, atol=1e-6)
        else:
            assert value == 70
    assert all(torch.equal(stored[-1][n], value) for n, value in model.state_dict().items())


def test_a_decay_of_0_is_the_model_itself() -> None:
    model = nn.Linear(2, 2)
    average = ExponentialAverage(model, decay=0.0)
    for step in (1, 2, 3):
        nn.init.normal_(model.weight)
        average.update(step)
        assert torch.equal(average.model.get_parameter("weight"), model.weight)


def test_hyperparameters_are_checked_and_belong_to_their_average(configured: Configure) -> None:
    assert average_values(configured()) == {}
    assert average_values(configured(average="ema")) == {"decay": 0.99}
    assert average_values(configured(average="swad", settings={"swad.tolerance_rate": 1.1})) == {
        "optimum_patience": 3,
        "overfit_patience": 6,
        "tolerance_rate": 1.1,
    }
    settings: dict[str, float | str] = {"ema.decay": 0.5, "group-dro.eta": 0.1, "trimmed-mean.t": 1}
    assert average_settings(settings) == {"ema.decay": 0.5}
    assert method_settings(settings) == {"group-dro.eta": 0.1, "trimmed-mean.t": 1}


@pytest.mark.parametrize(
    ("average", "setting", "value", "words"),
    [
        (
            "ema",
            "ema.decay",
            1.5,
            "ema.decay is a number at least 0 and at most 0.99999, found 1.5",
        ),
        ("ema", "ema.rate", 0.5, "ema has no hyperparameter 'rate'; it has: decay"),
        ("swad", "swad.optimum_patience", 0, "a whole number at least 1, found 0"),
        ("swad", "swad.overfit_patience", 1.5, "a whole number at least 1, found 1.5"),
        ("swad", "swad.tolerance_rate", 0.3, "a number at least 1, found 0.3"),
        ("none", "ema.decay", 0.5, "ema.decay is set and the average is 'none'"),
        ("swad", "ema.decay", 0.5, "choose average 'ema', or leave ema.decay out"),
    ],
)
def test_a_bad_hyperparameter_is_an_error_before_any_work(
    average: str, setting: str, value: float, words: str, tmp_path: Path, configured: Configure
) -> None:
    with pytest.raises(ArgumentError) as caught:
        train(configured(average=average, settings={setting: value}), tmp_path / "run")
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class _Kept(NoAverage):
    """Keeps the weights after every step."""

    stored: list[dict[str, Tensor]]

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.stored = []

    def update(self, step: int) -> None:
        state = self.model.state_dict()
        self.stored.append({name: value.detach().clone() for name, value in state.items()})


@pytest.fixture
def stored(
    tmp_path: Path, images: ImageSet, configured: Configure, monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, Tensor]]:
    """The weights after each of the 12 steps of the plain run."""
    kept: list[_Kept] = []

    def keep(_: RunConfiguration, model: nn.Module) -> _Kept:
        kept.append(_Kept(model))
        return kept[0]

    with monkeypatch.context() as patch:
        patch.setattr(learner_module, "build_average", keep)
        train(configured(), tmp_path / "kept", opened=images)
    return kept[0].stored


class Judge:
    """Stands in for the evaluation of a model, and keeps the weights that it is asked about."""

    def __init__(self, losses: list[float], accuracies: list[float]) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self._answers = zip(losses, accuracies, strict=True)

    def __call__(self, backbone: Backbone, *_: Any, **__: Any) -> Evaluation:
        self.weights.append({n: v.clone() for n, v in backbone.model.state_dict().items()})
        return Evaluation(*next(self._answers))


def test_a_run_with_ema_validates_selects_and_tests_the_average(
    tmp_path: Path,
    images: ImageSet,
    configured: Configure,
    stored: list[dict[str, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judged = Judge([1.0] * 17, [0.25, 0.75, 0.5, *[0.0] * 14])
    monkeypatch.setattr(outcome_module, "evaluate", judged)
    configuration = configured(average="ema", settings={"ema.decay": 0.5})
    record = train(configuration, tmp_path / "ema", opened=images)
    expected = stored[0]
    averages = [expected]
    for weights in stored[1:]:
        expected = {name: (expected[name] + weights[name]) / 2 for name in expected}
        averages.append(expected)
    # The validations, the tests of the last model on six domains and on the target's validation
    # images, those of the best.
    for found, step in zip(judged.weights, (4, 8, 12, *[12] * 7, *[8] * 7), strict=True):
        for name, value in found.items():
            torch.testing.assert_close(value, averages[step - 1][name])
    assert (record.result.best.step, record.result.best.averaged_from) == (8, None)
    model = load_file(tmp_path / "ema" / "model.safetensors")
    assert all(torch.equal(model[name], value) for name, value in judged.weights[1].items())
    plain = Record.load(tmp_path / "kept" / "record.json")
    assert record.curves.train_loss == plain.curves.train_loss


def test_the_best_model_of_a_run_with_swad_is_the_average_over_the_valley(
    tmp_path: Path,
    images: ImageSet,
    configured: Configure,
    stored: list[dict[str, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Validations at 2, 4, …, 12: the valley starts at 4 and, with 8 and 10 above the limit of
    # 1.3 · (1 + 1.1) / 2 = 1.365, ends at 6. Then come the tests of the last model, the validation
    # of the average, and its tests.
    losses = [2.0, 1.0, 1.1, 3.0, 3.0, 0.1, *[1.0] * 15]
    judged = Judge(losses, [*[0.25] * 4, 0.75, 0.25, *[0.125] * 7, 0.625, *[0.5] * 7])
    monkeypatch.setattr(outcome_module, "evaluate", judged)
    settings = {"swad.optimum_patience": 2, "swad.overfit_patience": 2}
    configuration = configured(average="swad", settings=settings, validate_every=2)
    record = train(configuration, tmp_path / "swad", opened=images)
    best, last = record.result.best, record.result.last
    assert (best.averaged_from, best.step, best.validation_accuracy) == (3, 6, 0.625)
    assert (last.averaged_from, last.step, last.validation_accuracy) == (None, 12, 0.25)
    assert (best.target_accuracy, last.target_accuracy) == (0.5, 0.125)
    for found, step in zip(judged.weights, (2, 4, 6, 8, 10, 12, *[12] * 7), strict=False):
        assert all(torch.equal(value, stored[step - 1][name]) for name, value in found.items())
    model = load_file(tmp_path / "swad" / "model.safetensors")
    for name, value in model.items():
        mean = torch.stack([weights[name].double() for weights in stored[2:6]]).mean(dim=0)
        torch.testing.assert_close(value.double(), mean, rtol=1e-5, atol=1e-6)
        assert all(torch.equal(value, tested[name]) for tested in judged.weights[13:])
    assert Record.load(tmp_path / "swad" / "record.json") == record


@pytest.mark.parametrize("average", ["ema", "swad"])
def test_an_interrupted_run_goes_on_to_the_same_average(
    average: str, tmp_path: Path, images: ImageSet, configured: Configure, outcome: Outcome
) -> None:
    configuration = configured(average=average, validate_every=2, batches="single")
    whole = train(configuration, tmp_path / "whole", opened=images)
    for step in (3, 8, 11):
        with pytest.raises(StopError):
            train(configuration, tmp_path / "parts", stop_at(step), opened=images)
    assert (tmp_path / "parts" / "checkpoint.pt").exists()
    assert bool(list(tmp_path.glob("parts/best-*.safetensors"))) == (average == "ema")
    record = train(configuration, tmp_path / "parts", opened=images)
    assert outcome(record, tmp_path / "parts") == outcome(whole, tmp_path / "whole")
    assert {path.name for path in (tmp_path / "parts").iterdir()} == {
        "configuration.json",
        "model.safetensors",
        "record.json",
        "split.json",
    }
