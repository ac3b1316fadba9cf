"""The training step as a CUDA graph: recorded once, then replayed by one call.

A network of many small kernels waits for Python to start them. A graph starts all kernels of a
step, the optimiser's included, at the card's own speed. It repeats what was recorded and nothing
else, so a step is replayed only while nothing but the images, the weights and the seeds differs
from the recorded one; and the first replays are compared with the step itself, bit by bit.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from gradsurgery.algorithms.objectives import Batch
from gradsurgery.documents.configuration import Switch
from gradsurgery.engine import BackwardResult
from gradsurgery.engine.accumulator import Update
from gradsurgery.engine.lanes import side_by_side
from gradsurgery.errors import GradsurgeryError, suppress_out_of_memory
from gradsurgery.kernels.network import staged_tables
from gradsurgery.training.device import NO_GPU, SCALES_LOSSES, VARIES, no_graph
from gradsurgery.training.learner import Learner

Done = TypeVar("Done")

# Steps before one is recorded: the optimiser makes its state in the first, and libraries choose
# their algorithms.
_EAGER_STEPS = 2
_COMPARED = 2
"""Replays that are compared with the step itself."""


class GraphedSteps:
    """Takes the steps of a run, by a graph where that is possible.

    mode: "off", "on", or "auto", which takes the steps one by one where there can be no graph.
    say: is told in a line why the steps are taken one by one, where they are on a GPU.

    side_by_side: whether the domains' passes are recorded beside one another; False from where such
        a recording fails, has no memory or other bits, and they are recorded in turn.
    refusal: why there is no graph, in a line; None while there may be one. With "on" an
        `ArgumentError` is raised instead.
    """

    def __init__(
        self,
        learner: Learner,
        mode: Switch,
        say: Callable[[str], None] = lambda _: None,
        *,
        side_by_side: bool = True,
    ) -> None:
        self.learner = learner
        self._mode = mode
        self._say = say
        self.side_by_side = side_by_side
        self._stage: Any = None
        self._eager = 0
        self._graph: _Graph | None = None
        self._compared = 0
        self.refusal: str | None = "it is switched off" if mode == "off" else None
        if mode != "off" and (reason := _obstacle(learner)) is not None:
            self._refuse(reason)

    @property
    def outcome(self) -> str | None:
        """For the record: that steps were replayed, or why not; None where there is no GPU."""
        if self.learner.device.type != "cuda":
            return None
        return self.refusal or (
            "replayed" if self._compared == _COMPARED else "too few steps of one kind"
        )

    @property
    def replays(self) -> bool:
        """Whether steps are being replayed."""
        return self.refusal is None and self._compared == _COMPARED

    def take(self, batches: Sequence[Batch], step: int) -> BackwardResult:
        """Take step `step`, counted from 1."""
        if self.refusal is not None:
            return self.learner.take(batches, step)
        stage = self.learner.algorithm.stage(step)
        if stage is None:
            self._refuse(VARIES.format(method="the method"))
            return self.learner.take(batches, step)
        shapes = [(images.shape, labels.shape) for images, labels in batches]
        key = stage, self.learner.freezing.holds(step), shapes
        if key != self._stage:  # what was recorded is of another formula
            self._let_go()
            self._stage, self._eager, self._compared = key, 0, 0
        if self._graph is None:
            draws, versions = draws_on_host(self.learner), _buffer_versions(self.learner)
            result = self.learner.take(batches, step)
            self._eager += 1
            if _buffer_versions(self.learner) != versions:
                self.side_by_side = False  # the backward pass before may still read them
            if self._eager > _EAGER_STEPS:
                if draws_on_host(self.learner) != draws:
                    self._refuse("it draws random numbers on the processor")
                else:
                    self._record(batches, step)
            return result
        if self._compared < _COMPARED:
            return self._compare(batches, step)
        return self._graph.replay(batches)

    def _record(self, batches: Sequence[Batch], step: int) -> None:
        """Record the step that was just taken; nothing is computed."""
        if self.learner.algorithm.state_dict():
            self._refuse("the method keeps a state of its own from step to step")
            return
        try:
            with side_by_side(self.side_by_side):
                self._graph = _Graph(
                    self.learner, batches, lambda fixed: self.learner.take(fixed, step)
                )
        except (RuntimeError, GradsurgeryError) as error:
            reason = " ".join(str(error).split())[:160]
            self._give_up(f"the step cannot be recorded ({type(error).__name__}: {reason})")

    def _compare(self, batches: Sequence[Batch], step: int) -> BackwardResult:
        """Take the step both ways; what stays is the step that was not replayed."""
        seeds = generator_states(self.learner)
        state = _tensors_of(self.learner)
        before: list[Tensor] = []
        after: list[Tensor] = []
        taken: BackwardResult | None = None
        with suppress_out_of_memory():  # a step fits beside no graph
            before += [tensor.clone() for tensor in state]
            assert self._graph is not None
            losses = self._graph.replay(batches).losses
            after += [*(tensor.clone() for tensor in state), losses]
            _put_back(state, before)
            _set_generators(self.learner, seeds)
            taken = self.learner.take(batches, step)
        if taken is None:  # and the error is gone, which held what the step had made so far
            _put_back(state, before)
            _set_generators(self.learner, seeds)
            before.clear()
            after.clear()
            self._make_room("there is no memory for a graph beside a step")
            return self.learner.take(batches, step)
        pairs = zip(after, [*_tensors_of(self.learner), taken.losses], strict=True)
        if all(_same_bits(left, right) for left, right in pairs):
            self._compared += 1
        else:
            self._let_go()
            self._give_up("a replayed step differs from the step itself")
        return taken

    def beside(self, work: Callable[[], Done]) -> Done:
        """What other work gives; done again without the graph where there is no memory for both."""
        if self._graph is None:
            return work()
        with suppress_out_of_memory():
            return work()
        self._make_room("there is no memory for a graph beside a validation")
        return work()

    def _make_room(self, reason: str) -> None:
        self._let_go()
        torch.cuda.empty_cache()
        self._give_up(reason)

    def _let_go(self) -> None:
        """Have no graph; its last replay may not have read yet what goes with it."""
        if self._graph is not None:
            _wait_for(self.learner.device)
        self._graph = None

    def _give_up(self, reason: str) -> None:
        """Record the domains' passes in turn from here on, or else no step."""
        if not self.side_by_side:
            self._refuse(reason)
        self.side_by_side, self._compared = False, 0

    def _refuse(self, reason: str) -> None:
        if self._mode == "on":
            raise no_graph(reason)
        self.refusal = reason
        if self.learner.device.type == "cuda":
            self._say(f"steps are taken one by one, without a CUDA graph: {reason}")


class _Graph:
    """A recorded step: the memory that it reads its batches from, and that of its result."""

    def __init__(
        self,
        learner: Learner,
        batches: Sequence[Batch],
        take: Callable[[Sequence[Batch]], BackwardResult],
    ) -> None:
        self._batches = [(images.clone(), labels.clone()) for images, labels in batches]
        self._graph = torch.cuda.CUDAGraph()
        if torch.__version__ < "2.14":  # from then on torch sees to it, and says so at every call
            self._graph.register_generator_state(learner.generator)
        learner.optimizer.zero_grad(set_to_none=True)
        with (
            staged_tables(learner.device) as self._read,
            _capturable(learner.optimizer),
            _recording(self._graph, learner.generator),
        ):
            self._result = take(self._batches)

    def replay(self, batches: Sequence[Batch]) -> BackwardResult:
        """The result of the step on these batches, in memory of its own."""
        pairs = list(zip(self._batches, batches, strict=True))
        torch._foreach_copy_(
            [fixed for own, _ in pairs for fixed in own],
            [given for _, batch in pairs for given in batch],
            non_blocking=True,
        )
        self._graph.replay()
        result = self._result
        update, checked = Update(*map(_copy, result.update)), _copy(result.checked)
        return replace(result, losses=result.losses.clone(), checked=checked, update=update)


def _wait_for(device: torch.device) -> None:
    """Let the device end what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def _put_back(state: list[Tensor], values: list[Tensor]) -> None:
    for tensor, value in zip(state, values, strict=False):  # fewer where memory ran out before
        tensor.copy_(value)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _obstacle(learner: Learner) -> str | None:
    """What is known beforehand to keep a step from being recorded."""
    if learner.device.type != "cuda":
        return NO_GPU
    if learner.scaler is not None:
        return SCALES_LOSSES
    if not getattr(learner.optimizer, "_step_supports_amp_scaling", False):
        return "the optimiser is not one of torch's fused ones"
    return None


@contextmanager
def _recording(graph: Any, generator: torch.Generator) -> Iterator[None]:
    """Inside, what the generator's device is asked for is recorded, and not computed.

    Where it cannot be, torch leaves the generators, the allocator and the current stream as in a
    recording: they are put back, for the steps that are taken one by one from there on.
    """
    device = generator.device.index  # None of one that is made for "cuda"
    device = torch.cuda.current_device() if device is None else device
    drawing = (generator, torch.cuda.default_generators[device])
    before = [each.clone_state() for each in drawing]
    stream, pool = _recording_stream(device), torch.cuda.graph_pool_handle()
    options: Any = {"pool": pool, "stream": stream, "capture_error_mode": "thread_local"}
    try:
        with torch.cuda.stream(stream), torch.cuda.graph(graph, **options):
            yield
    except BaseException:
        for each, state in zip(drawing, before, strict=True):
            each.graphsafe_set_state(state)
        with suppress(RuntimeError):  # where torch has come to end it
            torch._C._cuda_endAllocateToPool(device, pool)
            torch._C._cuda_releasePool(device, pool)
        raise


@cache
def _recording_stream(device: int) -> torch.cuda.Stream:
    """One for all graphs of a device, as each has memory of its own in torch's libraries."""
    return torch.cuda.Stream(device)


@contextmanager
def _capturable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, Adam lets its step be recorded; its fused form keeps all of its state on the GPU."""
    before = [group.get("capturable") for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = True
    try:
        yield
    finally:
        for group, value in zip(optimizer.param_groups, before, strict=True):
            if "capturable" in group:
                group["capturable"] = value


def _tensors_of(learner: Learner) -> list[Tensor]:
    """All that a step changes, in one order."""
    tensors = [*learner.backbone.model.state_dict().values()]
    for values in learner.optimizer.state.values():
        tensors += [value for _, value in sorted(values.items()) if isinstance(value, Tensor)]
    return [tensor.detach() for tensor in tensors]


def draws_on_host(learner: Learner) -> list[Any]:
    """What random numbers the processor gives next; a graph would repeat those of one step."""
    torchs = [torch.default_generator, learner.host_generator]
    if learner.host_generator is learner.generator:  # the processor is the device
        torchs = []
    _, words, *rest = np.random.get_state()  # noqa: NPY002
    states = [each.get_state().numpy().tobytes() for each in torchs]
    return [*states, random.getstate(), np.asarray(words).tobytes(), rest]


def _buffer_versions(learner: Learner) -> list[int]:
    """How often each buffer was written to, but for those of torch's own batch normalisation,

    whose backward passes do not read them.
    """
    modules = learner.backbone.model.modules()
    layers = [layer for layer in modules if type(layer).forward is not _BatchNorm.forward]
    return [buffer._version for layer in layers for buffer in layer.buffers(recurse=False)]


def generator_states(learner: Learner) -> list[Tensor]:
    """Where the learner's generators and torch's own are."""
    on_device = [torch.cuda.get_rng_state(learner.device)] if learner.device.type == "cuda" else []
    own = [learner.generator.get_state(), learner.host_generator.get_state()]
    return [*own, torch.get_rng_state(), *on_device]


def _set_generators(learner: Learner, states: list[Tensor]) -> None:
    own, host, default, *on_device = states
    learner.generator.set_state(own)
    learner.host_generator.set_state(host)
    torch.set_rng_state(default)
    for state in on_device:
        torch.cuda.set_rng_state(state, learner.device)


def _same_bits(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left.nan_to_num(), right.nan_to_num()) and torch.equal(
        left.isnan(), right.isnan()
    )
