"""What is left on the device is read late, and is the same then."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import gradsurgery as gs
from gradsurgery.data import ImageSet
from gradsurgery.data.loader import (
    HostLoader,
    ImageLoader,
    ResidentLoader,
    ResidentSets,
    StreamingLoader,
)
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.record import Record
from gradsurgery.engine import BackwardResult
from gradsurgery.errors import NonFiniteError
from gradsurgery.training import TrainingProgress, progress, train
from gradsurgery.training import learner as learner_module
from gradsurgery.training import run as run_module
from gradsurgery.training.learner import Learner, build_learner
from gradsurgery.training.progress import StepClock, StepFigures, UnreadSteps

Configure = Callable[..., RunConfiguration]
Outcome = Callable[[Record, Path], tuple[dict[str, Any], bytes]]
CPU = torch.device("cpu")


def result_of(gradients: list[list[float]], rule: gs.Rule) -> BackwardResult:
    weight = torch.zeros(len(gradients[0]), requires_grad=True)
    losses = (torch.tensor(row) @ weight + number for number, row in enumerate(gradients))
    return gs.backward(losses, [weight], rule)


def as_found(error: NonFiniteError, step: int) -> NonFiniteError:
    return NonFiniteError(f"step {step}", domain=error.domain)


def test_steps_are_read_in_their_order() -> None:
    unread = UnreadSteps(as_found, scaled=False)
    unread.add(4, result_of([[1.0, -2.0, 0.0], [3.0, 4.0, 0.0]], gs.AgrSum()))
    unread.add(5, result_of([[1.0, 2.0, 1.0], [3.0, 4.0, 0.0]], gs.AgrSum()))
    assert unread.read() == [
        StepFigures(4, loss=0.5, agreeing=0.5, cosine=None),
        StepFigures(5, loss=0.5, agreeing=pytest.approx(2 / 3), cosine=None),
    ]
    unread.add(6, result_of([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], gs.PCGrad()))
    (figures,) = unread.read()  # cosines 0, 0 and -1
    assert figures == StepFigures(6, loss=1.0, agreeing=None, cosine=pytest.approx(-1 / 3))


def test_where_nothing_moves_nothing_agrees() -> None:
    unread = UnreadSteps(as_found, scaled=False)
    unread.add(1, result_of([[0.0], [0.0]], gs.AgrSum()))
    unread.add(2, result_of([[2.0], [3.0]], gs.AgrSum()))
    assert [figures.agreeing for figures in unread.read()] == [None, 1.0]


def test_the_first_spoilt_step_is_named() -> None:
    unread = UnreadSteps(as_found, scaled=False)
    good = result_of([[1.0], [2.0]], gs.AgrSum())
    for step, result in ((1, good), (2, spoilt(good)), (3, good), (4, spoilt(good))):
        unread.add(step, result)
    with pytest.raises(NonFiniteError, match="step 2") as caught:
        unread.read()
    assert caught.value.domain == 1
    scaled = UnreadSteps(as_found, scaled=True)  # the scaler has skipped the step
    scaled.add(1, spoilt(good))
    assert scaled.read()[0].loss == good.losses.mean()


def spoilt(result: BackwardResult) -> BackwardResult:
    """What an accelerator gives where a gradient is not finite: domain 1's, in the last tensor."""
    flags = torch.zeros(len(result.losses), len(result.names), dtype=torch.int32)
    flags[1, -1] = 1
    return replace(result, update=result.update._replace(flags=flags, found=torch.tensor(1.0)))


def test_the_clock_of_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    moments: Iterator[float] = iter([10.0, 10.0, 11.0, 14.0, 14.5, 18.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(moments))
    clock = StepClock(CPU)
    assert clock.wants_reading()
    clock.start()  # 10
    clock.images_are_there()  # 11
    clock.step_ended()  # 14
    clock.images_are_there()  # 14.5
    assert clock.stop() == (8.0, 1.5)


def test_the_clock_of_a_gpu_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    now = SimpleNamespace(host=10.0, device=0.0)

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: str) -> None:
            assert stream == "current"
            self.at = now.device

        def elapsed_time(self, end: "Event") -> float:  # in milliseconds
            return 1000 * (end.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: "current")
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now.host)
    clock = StepClock(torch.device("cuda"))
    clock.start()
    for arrival, end in ((0.25, 2.0), (2.5, 4.0)):  # the host is far ahead
        now.device = arrival
        clock.images_are_there()
        now.device = end
        clock.step_ended()
    assert not clock.wants_reading()
    now.host = 11.5
    assert clock.wants_reading()
    now.host = 14.0
    assert clock.stop() == (4.0, 0.75)
    clock.start()
    assert clock.stop() == (0.0, 0)


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop looks at figures as seldom as with an accelerator that is fast."""
    monkeypatch.setattr(StepClock, "wants_reading", lambda _: False)


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("method", ["deep-all", "agr-sum", "pcgrad"])
def test_a_run_that_is_read_late_ends_in_the_same_record(
    method: str,
    tmp_path: Path,
    images: ImageSet,
    configured: Configure,
    outcome: Outcome,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = configured(method=method, log_conflict=3)
    told: dict[str, list[TrainingProgress]] = {"late": [], "at once": []}
    late = train(options, tmp_path / "late", told["late"].append, opened=images)
    monkeypatch.setattr(StepClock, "wants_reading", lambda _: True)
    at_once = train(options, tmp_path / "at once", told["at once"].append, opened=images)
    assert outcome(late, tmp_path / "late") == outcome(at_once, tmp_path / "at once")
    late_steps, steps = (
        [(p.done, p.loss, p.agreeing, p.validation_accuracy) for p in reports]
        for reports in told.values()
    )
    assert late_steps == steps


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize(("first", "others"), [(3, [5]), (6, [7, 8]), (12, [])])
def test_a_spoilt_step_is_named_before_anything_is_written_of_it(
    first: int,
    others: list[int],
    tmp_path: Path,
    images: ImageSet,
    configured: Configure,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step_taken: list[int] = []

    def spoiling(*arguments: Any) -> Learner:
        learner = build_learner(*arguments)
        take = learner.algorithm.step

        def step(*inputs: Any, **options: Any) -> BackwardResult:
            step_taken.append(options["step"])
            result = take(*inputs, **options)
            return spoilt(result) if options["step"] in (first, *others) else result

        learner.algorithm.step = step  # type: ignore[method-assign]
        return learner

    monkeypatch.setattr(run_module, "build_learner", spoiling)
    seen: list[TrainingProgress] = []
    expected = f"gradient of classifier.bias of domain '15' is not finite at step {first};"
    with pytest.raises(NonFiniteError, match=expected) as caught:
        train(configured(), tmp_path / "run", seen.append, opened=images)
    assert caught.value.domain == 1
    validation = -(-first // 4) * 4  # the next one, where the figures are read
    assert step_taken == list(range(1, validation + 1))
    assert [each.done for each in seen] == list(range(1, validation - 3))
    assert (tmp_path / "run" / "checkpoint.pt").exists() == (validation > 4)


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.count += func in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
        )
        return func(*args, **kwargs or {})


@pytest.mark.usefixtures("unhurried")
def test_the_loop_itself_waits_for_nothing_between_validations(
    tmp_path: Path, images: ImageSet, configured: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, at_steps = Reads(), []
    result = result_of([[1.0], [2.0], [3.0], [4.0], [5.0]], gs.AgrSum())

    def idle(*arguments: Any) -> Learner:
        learner = build_learner(*arguments)

        def step(model: nn.Module, batches: list[tuple[Tensor, Tensor]], *_: Any, **__: Any) -> Any:
            assert [len(labels) for _, labels in batches] == [8] * 5
            at_steps.append(reads.count)
            return result

        learner.algorithm.step = step  # type: ignore[method-assign]
        return learner

    monkeypatch.setattr(run_module, "build_learner", idle)
    with reads:
        train(configured(average="ema"), tmp_path, opened=images)
    windows = [at_steps[start : start + 4] for start in (0, 4, 8)]
    assert all(len(set(window)) == 1 for window in windows)
    assert windows[0] != windows[1]  # else nothing was counted


@pytest.mark.parametrize("kind", [ResidentLoader, StreamingLoader])
@pytest.mark.parametrize("method", ["deep-all", "agr-sum"])
def test_images_on_the_device_end_in_the_record_of_the_processors(
    kind: type[ImageLoader],
    method: str,
    tmp_path: Path,
    images: ImageSet,
    configured: Configure,
    outcome: Outcome,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[ImageLoader] = []

    def on_device(images: ImageSet, *normal: Any, device: torch.device, **_: Any) -> ImageLoader:
        extra: dict[str, Any] = {"channels_last": True}
        if kind is ResidentLoader:
            extra["resident"] = ResidentSets(lambda _: 10**9).get(images, device)
        made.append(kind(images, *normal, device, **extra))
        return made[-1]

    plain = train(configured(method=method), tmp_path / "plain", opened=images)
    monkeypatch.setattr(learner_module, "image_loader", on_device)
    found = train(configured(method=method), tmp_path / "device", opened=images)
    assert not isinstance(made[0], HostLoader)
    assert outcome(found, tmp_path / "device") == outcome(plain, tmp_path / "plain")
    assert found.cost.data_wait is not None
    assert 0 < found.cost.data_wait < 1
