"""What a run logs of the conflict between its domains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gradsurgery as gs
from gradsurgery.data import ImageSet
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.record import ConflictLog, Record
from gradsurgery.training import TrainingProgress, train

Configure = Callable[..., RunConfiguration]
Outcome = Callable[[Record, Path], tuple[dict[str, Any], bytes]]


class StopError(Exception):
    pass


def stop_at_9(progress: TrainingProgress) -> None:
    if progress.stage == "training" and progress.done >= 9:
        raise StopError


def logged(result: gs.BackwardResult, sizes: dict[str, int]) -> ConflictLog:
    log = ConflictLog()
    log.append(
        1,
        result.losses.tolist(),
        agreeing=result.agreeing,
        cosines=None if result.cosines is None else result.cosines.tolist(),
        by_parameter=result.agreeing_by_parameter,
        moving=result.moving_by_parameter,
        sizes=sizes,
    )
    return log


def test_a_layer_has_the_fraction_of_all_its_components() -> None:
    layer = torch.nn.Linear(3, 1)
    domains = (torch.tensor([1.0, -1.0, 0.0]), torch.tensor([1.0, 1.0, 0.0]))
    losses = ((layer.weight @ domain).sum() + layer.bias.sum() for domain in domains)
    named = [("head.weight", layer.weight), ("head.bias", layer.bias)]
    result = gs.backward(losses, named, gs.AgrSum())
    log = logged(result, {"head.weight": 3, "head.bias": 1})
    assert log.layers == [{"head": 2 / 3}]  # of the weight 1 of the 2 that move, and the bias
    assert (log.moving, log.sizes) == ([{"head": 3}], {"head": 4})
    assert log.agreeing == [2 / 3]
    assert log.cosines == [None]


def test_rules_with_inner_products_log_their_cosines() -> None:
    weight = torch.zeros(2, requires_grad=True)
    losses = (weight @ torch.tensor(domain) for domain in ([1.0, 0.0], [0.0, 2.0], [3.0, 0.0]))
    log = logged(gs.backward(losses, [weight], gs.PCGrad()), {"0": 2})
    assert log.cosines == [[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]]
    assert (log.agreeing, log.layers) == ([None], [None])


def test_what_is_not_finite_is_null() -> None:
    log = ConflictLog()
    log.append(
        1,
        [float("nan"), 1.0],
        agreeing=float("nan"),
        cosines=[[float("inf")]],
        by_parameter=None,
        moving=None,
        sizes={},
    )
    assert ConflictLog.model_validate_json(log.model_dump_json()) == log
    assert (log.losses, log.agreeing, log.cosines) == ([[None, 1.0]], [None], [[[None]]])


def test_a_run_logs_every_k_steps_and_nothing_by_default(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    record = train(configured(log_conflict=5), tmp_path / "logs", opened=images)
    assert record.conflict is not None
    assert record.conflict.step == [5, 10]
    assert [len(losses) for losses in record.conflict.losses] == [5, 5]
    log = record.conflict
    for agreeing, layers, moving in zip(log.agreeing, log.layers, log.moving, strict=True):
        assert layers is not None
        assert moving is not None
        weighted = sum(fraction * moving[layer] for layer, fraction in layers.items())
        assert agreeing == pytest.approx(weighted / sum(moving.values()))
        assert 0 < sum(moving.values()) <= record.model.parameters
    plain = train(configured(), tmp_path / "plain", opened=images)
    assert plain.conflict is None
    assert plain.curves == record.curves
    saved = Record.load(tmp_path / "logs" / "record.json")
    assert saved == record


@pytest.mark.parametrize("method", ["agr-sum", "pcgrad", "deep-all"])
def test_a_resumed_run_has_the_same_log(
    method: str, tmp_path: Path, images: ImageSet, configured: Configure, outcome: Outcome
) -> None:
    configuration = configured(method=method, log_conflict=2)
    whole = train(configuration, tmp_path / "whole", opened=images)
    with pytest.raises(StopError):
        train(configuration, tmp_path / "parts", stop_at_9, opened=images)
    resumed = train(configuration, tmp_path / "parts", opened=images)
    assert resumed.conflict is not None
    assert resumed.conflict.step == [2, 4, 6, 8, 10, 12]
    assert outcome(resumed, tmp_path / "parts") == outcome(whole, tmp_path / "whole")
