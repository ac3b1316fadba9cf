"""Every method through the training loop, whole and interrupted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradsurgery.algorithms import METHODS, OTHER_METHODS, hyperparameter_names
from gradsurgery.data import ImageSet
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.record import Record
from gradsurgery.training import TrainingProgress, train
from gradsurgery.training import loop as loop_module
from gradsurgery.training import run as run_module
from gradsurgery.training.learner import Learner

Configure = Callable[..., RunConfiguration]
Outcome = Callable[[Record, Path], tuple[dict[str, Any], bytes]]


EARLY = {
    name: {key: 10 for key in hyperparameter_names(name) if key.endswith("anneal")}
    for name in ("fishr", "eqrm", "ib-erm", "ib-irm")
}
"""Those that would be plainer ones in a run as short as these."""


class StopError(Exception):
    pass


@pytest.mark.parametrize("method", [*METHODS, *OTHER_METHODS])
def test_every_method_learns(
    method: str, tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    settings = EARLY.get(method, {})
    options = configured(method=method, settings=settings, iterations=30, validate_every=10)
    curves = train(options, tmp_path, opened=images).curves
    first, last = curves.validation_loss[0], curves.validation_loss[-1]
    assert first is not None
    assert last is not None
    assert last < first


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("irm", {"irm.anneal": 2}),
        ("group-dro", {"group-dro.eta": 0.5}),
        ("mldg", {}),
        ("gradvac", {}),
        ("agr-ema", {}),
        ("fishr", {"fishr.anneal": 1}),
        ("sd+agr-rand", {}),
        ("dann+agr-rand", {"dann.learning_rate": 0.01}),
        ("cdann", {"cdann.learning_rate": 0.01}),
        ("eqrm", {"eqrm.anneal": 2}),
        ("ib-irm", {"ib-irm.anneal": 2, "ib-irm.ib_anneal": 3}),
        ("fish", {}),
        ("mixup+agr-rand", {}),
        ("gradnorm+gradvac", {}),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_record(
    method: str,
    settings: dict[str, float],
    tmp_path: Path,
    images: ImageSet,
    configured: Configure,
    outcome: Outcome,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop_module, "_CHECKPOINT_SHARE", 1.0)  # one at every validation
    configuration = configured(method=method, settings=settings, iterations=6, validate_every=2)
    whole = train(configuration, tmp_path / "whole", opened=images)
    begun: list[int] = []

    def stopping_at(last: int) -> Callable[[TrainingProgress], None]:
        def report(progress: TrainingProgress) -> None:
            if progress.stage == "training" and progress.done >= last:
                raise StopError
            if progress.stage == "training":
                begun.append(progress.done)

        return report

    for last in (3, 5):  # before the checkpoint after an annealing step, and after it
        with pytest.raises(StopError):
            train(configuration, tmp_path / "parts", stopping_at(last), opened=images)
    record = train(configuration, tmp_path / "parts", stopping_at(7), opened=images)
    assert begun == [1, 2, 3, 4, 5, 6]  # a step that was checkpointed is not done again
    assert outcome(record, tmp_path / "parts") == outcome(whole, tmp_path / "whole")


@pytest.mark.parametrize("method", ["irm", "vrex+agr-sum", "fishr", "eqrm", "ib-erm"])
def test_the_optimiser_starts_anew_once(
    method: str,
    tmp_path: Path,
    images: ImageSet,
    configured: Configure,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build, learners = run_module.build_learner, []

    def noted(*arguments: Any) -> Learner:
        learners.append(build(*arguments))
        return learners[-1]

    monkeypatch.setattr(run_module, "build_learner", noted)
    objective, _, _ = method.partition("+")
    settings = {f"{objective}.anneal": 2}
    train(
        configured(method=method, settings=settings, iterations=6),
        tmp_path,
        opened=images,
    )
    states = learners[0].optimizer.state.values()
    assert {int(state["step"]) for state in states} == {4}  # the steps 3 to 6
