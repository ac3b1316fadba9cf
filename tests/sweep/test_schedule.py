import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from gradsurgery.data import open_source, prepare
from gradsurgery.documents.plan import Plan
from gradsurgery.sweep import schedule as module
from gradsurgery.sweep.launcher import Outcome
from gradsurgery.sweep.runs import SweepRun
from gradsurgery.sweep.schedule import Execution, Schedule, estimate
from gradsurgery.training import frozen_features, train
from tests.sweep.conftest import OPTIONS

FAILED, LOST = Outcome("failed", "no"), Outcome("lost", "killed")


def test_a_run_that_fails_is_tried_again_after_the_others() -> None:
    schedule = Schedule(["a", "b"], retries=1)
    assert schedule.next(0.0) == "a"
    assert not schedule.stopped("a", FAILED)
    assert (schedule.next(0.0), schedule.next(0.0), schedule.next(0.0)) == ("b", "a", None)
    assert schedule.stopped("a", FAILED)
    assert (schedule.failed, schedule.attempts) == ({"a": FAILED}, {"a": 2})
    schedule.finished("b")
    assert not schedule.unfinished


def test_a_lost_worker_is_no_failure_of_its_run_unless_it_happens_again_and_again() -> None:
    schedule = Schedule(["a", "b"], retries=0)
    for _ in range(10):
        assert schedule.next(0.0) == "a"  # at once, from its checkpoint
        assert not schedule.stopped("a", LOST)
    assert schedule.next(0.0) == "a"
    assert schedule.stopped("a", LOST)
    assert schedule.failed == {"a": LOST}


def test_a_run_of_another_process_is_asked_for_again_later() -> None:
    schedule = Schedule(["a", "b"], retries=0)
    assert schedule.next(0.0) == "a"
    schedule.put_aside("a", until=5.0)
    assert schedule.aside == 1
    assert schedule.next(1.0) == "b"
    assert schedule.next(1.0) is None
    assert schedule.unfinished
    assert schedule.next(5.0) == "a"
    assert schedule.aside == 0


@given(st.lists(st.sampled_from(["done", "failed", "lost", "busy"]), max_size=200))
def test_every_run_ends_once_whatever_happens(news: list[str]) -> None:
    schedule, time = Schedule([str(i) for i in range(7)], retries=2), 0.0
    done = []
    told = iter(news)
    while schedule.unfinished:
        time += 1
        key = schedule.next(time)
        assert key is not None
        match next(told, "done"):
            case "done":
                schedule.finished(key)
                done.append(key)
            case "busy":
                schedule.put_aside(key, time + 1)
            case state:
                schedule.stopped(key, FAILED if state == "failed" else LOST)
    assert not schedule.running
    assert sorted([*done, *schedule.failed]) == [str(i) for i in range(7)]


@pytest.mark.parametrize(("seconds_a_step", "steps"), [(1.0, 4), (60.0, 2)])
def test_long_steps_are_timed_once(
    seconds_a_step: float,
    steps: int,
    plan: Callable[..., Plan],
    runs_of: Callable[[Plan], list[SweepRun]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first step warms up; where steps take minutes, an estimate takes two of them."""
    clock, taken, real = [0.0], [], module.train

    def watched(*given: Any, observe: Callable[..., None], **options: Any) -> Any:
        def look(step: int, backbone: Any) -> None:
            clock[0] += seconds_a_step
            taken.append(step)
            observe(step, backbone)

        return real(*given, observe=look, **options)

    monkeypatch.setattr(module, "train", watched)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    runs = runs_of(plan(methods=["deep-all"], seeds="1"))
    found = estimate(runs, {}, {"rotated-digits": open_source("rotated-digits")}, Execution())
    assert taken == list(range(steps + 1))
    assert found.seconds == pytest.approx(6 * seconds_a_step)  # of its six steps


PROBE = OPTIONS | {"freeze": "all-but-head", "iterations": 200, "batch_size": 16}


@pytest.mark.parametrize(("weights", "counted"), [("none", 3), ("weights.safetensors", 1)])
def test_what_frozen_layers_make_of_images_counts_once_a_network(
    weights: str,
    counted: int,
    plan: Callable[..., Plan],
    runs_of: Callable[[Plan], list[SweepRun]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without weights every seed has a network of its own."""
    monkeypatch.setattr(module, "_timed_on_features", lambda *_: (0.5, 2.0))
    options = PROBE | {"weights": weights, "backbone": "resnet18"}
    runs = runs_of(plan(methods=["deep-all", "agr-sum"], seeds="3", options=options))
    found = estimate(runs, {}, {"rotated-digits": open_source("rotated-digits")}, Execution())
    features, steps = counted * 1797 * 2.0, len(runs) * 200 * 0.5
    once = 0.0 if weights == "none" else features  # then a worker waits for another
    assert found == (len(runs), steps + features, 2, once)
    assert found.with_workers(1) == steps + features
    assert found.with_workers(2) == once + (steps + features - once) / 2


def test_it_counts_also_beside_a_method_that_does_without(
    plan: Callable[..., Plan],
    runs_of: Callable[[Plan], list[SweepRun]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_timed_on_features", lambda *_: (0.5, 2.0))
    monkeypatch.setattr(module, "_timed_step_and_image", lambda *_: (0.0, 0.0))
    runs = runs_of(plan(methods=["agr-sum", "mixup"], seeds="1", options=PROBE))
    found = estimate(runs, {}, {"rotated-digits": open_source("rotated-digits")}, Execution())
    assert found.seconds == len(runs) / 2 * 200 * 0.5 + 1797 * 2.0


def test_a_step_on_features_is_timed_as_one(
    plan: Callable[..., Plan],
    runs_of: Callable[[Plan], list[SweepRun]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No run is begun for it, and few images are passed through the frozen layers."""
    monkeypatch.setattr(module, "train", None)
    monkeypatch.setattr(random, "getstate", random.Random(0).getstate)  # annotation checks draw
    passed: list[int] = []
    real = frozen_features._FrozenLayers._of

    def watched(layers: Any, images: Any) -> Any:
        passed.append(len(images))
        return real(layers, images)

    monkeypatch.setattr(frozen_features._FrozenLayers, "_of", watched)
    runs = runs_of(plan(methods=["agr-sum"], seeds="1", options=PROBE))
    found = estimate(runs, {}, {"rotated-digits": open_source("rotated-digits")}, Execution())
    assert found.timed == 1
    assert found.seconds > 0
    assert sum(passed) <= 12 + 12 + 5 * 16


def test_features_that_another_run_left_take_no_time(
    tmp_path: Path,
    plan: Callable[..., Plan],
    runs_of: Callable[[Plan], list[SweepRun]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(random, "getstate", random.Random(0).getstate)  # annotation checks draw
    network = timm.create_model("test_byobnet", pretrained=False, num_classes=10)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    weights = {"backbone": "test_byobnet", "weights": str(tmp_path / "weights.safetensors")}
    runs = runs_of(plan(methods=["agr-sum"], seeds="1", options=PROBE | weights))
    c = runs[0].configuration
    images = prepare(open_source("rotated-digits"), size=c.image_size, cache=tmp_path / "cache")

    def seconds_an_image() -> float:
        timed = module._timed_on_features(c, images)
        assert timed is not None
        return timed[1]

    assert seconds_an_image() > 0
    train(c.model_copy(update={"iterations": 2}), tmp_path / "run", opened=images)
    assert seconds_an_image() == 0
