"""Whatever is changed in a checkpoint is noticed: nothing goes on from what was not written."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gradsurgery.data import ImageSet
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.errors import ArgumentError
from gradsurgery.training import CheckpointError, TrainingProgress, train
from gradsurgery.training.checkpoint import check_same, load_checkpoint, outline, save_weights

Configure = Callable[..., RunConfiguration]
Place = tuple[Any, ...]
METHODS = [
    {"method": "agr-sum"},
    {"method": "group-dro+gradvac", "precision": "float16", "average": "ema"},
    {"method": "vrex", "average": "swad", "log_conflict": 4, "optimizer": "sgd"}
    | {"settings": {"vrex.anneal": 2}},
]


class StopError(Exception):
    pass


def begun(directory: Path, configuration: RunConfiguration, images: ImageSet) -> None:
    def stop(progress: TrainingProgress) -> None:
        if progress.stage == "training" and progress.done == 9:
            raise StopError

    with pytest.raises(StopError):
        train(configuration, directory, stop, opened=images)


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Where anything lies in nested dictionaries and sequences, from the outside in."""
    yield at
    if isinstance(value, dict):
        for key, each in value.items():
            yield from places(each, (*at, key))
    elif isinstance(value, list | tuple):
        for position, each in enumerate(value):
            yield from places(each, (*at, position))


def found_at(content: Any, place: Place) -> Any:
    for key in place:
        content = content[key]
    return content


def replaced(content: Any, place: Place, value: Any) -> Any:
    """The content with `value` at a place: a copy as far as it differs."""
    if not place:
        return value
    first, *rest = place
    inner = replaced(content[first], tuple(rest), value)
    if isinstance(content, dict):
        return type(content)({**content, first: inner})
    kind = type(content)
    return kind([*content[:first], inner, *content[first + 1 :]])


def mutations(value: Any) -> Iterator[Any]:
    """Other values that a place may come to hold."""
    yield from (None, {}, [], "x", -1, 10**30, float("nan"), torch.zeros(3), True)
    if isinstance(value, dict):
        yield type(value)({**value, "added": 1})
        for key in list(value)[:3]:
            yield type(value)({k: v for k, v in value.items() if k != key})
            yield type(value)({f"{k}x" if k == key else k: v for k, v in value.items()})
    elif isinstance(value, list | tuple):
        yield type(value)(value[:-1])
        yield type(value)([*value, *value[-1:]])
    elif isinstance(value, torch.Tensor):
        yield from (value.double(), value.unsqueeze(0), value.flatten()[:-1], value.tolist())
    elif isinstance(value, float):
        yield from (value + 1.0, str(value), int(value))
    elif isinstance(value, int):
        yield from (value + 1, str(value), float(value) + 0.5)
    elif isinstance(value, str):
        yield from (value + "0", value[:-1], value.encode())


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def saved(path: Path, content: Any) -> None:
    try:
        torch.save(content, path)
    except (OverflowError, RuntimeError):
        pytest.fail("cannot be written at all")


@pytest.mark.parametrize("options", METHODS, ids=lambda options: options["method"])
def test_every_change_of_a_checkpoint_is_one_line(
    options: dict[str, Any], tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    begun(tmp_path, configured(**options), images)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    content = torch.load(path, weights_only=True)
    tried = 0
    for number, place in enumerate(places(content)):  # one kind of change after the other
        before = found_at(content, place)
        others = [value for value in mutations(before) if not same(value, before)]
        saved(path, replaced(content, place, others[number % len(others)]))
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(tmp_path)
        message = str(caught.value)
        assert "\n" not in message
        assert "is damaged" in message
        assert "delete" in message
        assert len(message) < 1000
        tried += 1
    assert tried > 100
    path.write_bytes(whole)
    assert load_checkpoint(tmp_path) is not None


def test_a_checkpoint_of_the_version_before_goes_on(
    tmp_path: Path, images: ImageSet, configured: Configure, outcome: Callable[..., Any]
) -> None:
    whole = train(configured(), tmp_path / "whole", opened=images)
    begun(tmp_path / "parts", configured(), images)
    path = tmp_path / "parts" / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    del content["outline"]
    torch.save(content | {"version": 3}, path)
    record = train(configured(), tmp_path / "parts", opened=images)
    assert outcome(record, tmp_path / "parts") == outcome(whole, tmp_path / "whole")


STATE = ("learner", "optimizer", "state")
GROUP = ("learner", "optimizer", "param_groups", 0)


def test_what_the_version_before_did_not_check_is_no_traceback(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    """It had no outline: an optimiser's state that does not fit would reach a fused step."""
    begun(tmp_path, configured(), images)
    path = tmp_path / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    del content["outline"]
    content["version"] = 3
    moment = content["learner"]["optimizer"]["state"][0]["exp_avg"]
    changes: list[tuple[Place, Any]] = [
        ((*STATE, 0, "exp_avg"), moment.flatten()[:-1]),
        ((*STATE, 0, "exp_avg"), moment.tolist()),
        ((*STATE, 0, "exp_avg"), None),
        ((*STATE, 0), {"step": torch.tensor(9.0), "exp_avg": moment}),
        ((*STATE, 0, "step"), torch.ones(3)),
        ((*STATE, 0, "step"), "x"),
        ((*GROUP, "amsgrad"), True),
        ((*GROUP, "differentiable"), float("nan")),
        ((*GROUP, "eps"), "x"),
        ((*GROUP, "lr"), "0.005"),
        ((*GROUP, "lr"), float("nan")),
        ((*GROUP, "fused"), False),
        (("learner", "model"), {}),
        (("learner", "algorithm"), {"rule.x": torch.ones(1)}),
    ]
    for place, value in changes:
        saved(path, replaced(content, place, value))
        with pytest.raises(CheckpointError, match=r"is damaged .* delete") as caught:
            train(configured(), tmp_path, opened=images)
        assert "\n" not in str(caught.value), place


def test_another_best_model_is_refused(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    begun(tmp_path, configured(), images)
    path = tmp_path / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    forged = deepcopy(content) | {"best_digest": ""}
    del forged["outline"]
    torch.save(forged | {"outline": outline(forged)}, path)
    with pytest.raises(CheckpointError, match="best model"):
        train(configured(), tmp_path, opened=images)


def test_other_options_are_refused_with_both_values(tmp_path: Path) -> None:
    one = RunConfiguration(data="pacs", target="sketch", seed=1)
    two = RunConfiguration(data="pacs", target="sketch", seed=2)
    check_same(one, one, tmp_path)
    with pytest.raises(ArgumentError, match="seed: 2 there, 1 here"):
        check_same(one, two, tmp_path)


def test_weights_that_layers_have_in_common_are_written_for_each(tmp_path: Path) -> None:
    """As of timm's CoaT, whose blocks share a convolution."""
    common = torch.arange(3.0)
    weights = {"a": common, "b": common, "c": torch.zeros(0), "d": torch.zeros(0)}
    save_weights(weights, tmp_path / "model.safetensors")
    found = load_file(tmp_path / "model.safetensors")
    assert {name: value.tolist() for name, value in found.items()} == {
        "a": [0, 1, 2],
        "b": [0, 1, 2],
        "c": [],
        "d": [],
    }
