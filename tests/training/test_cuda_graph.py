"""When a step is recorded, compared and replayed; a stand-in for the graph repeats the step."""

import random
import weakref
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.torch_version import TorchVersion

import gradsurgery as gs
from gradsurgery.backbones import build_backbone
from gradsurgery.engine import lanes
from gradsurgery.errors import ArgumentError, GradsurgeryError
from gradsurgery.training import cuda_graph, loop
from gradsurgery.training.cuda_graph import GraphedSteps
from gradsurgery.training.learner import build_learner

STEPS = 12
RECORDED = cuda_graph._Graph
COIN = random.Random(0)
"""Stands for Python's own numbers: what checks the annotations under the tests draws from those."""


class Repeated:
    """Stands for a recorded step: takes it again, on any batches."""

    recorded = 0

    def __init__(self, learner, batches, take):
        self.take = take
        type(self).recorded += 1

    def replay(self, batches):
        return self.take(batches)


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    """A processor that is taken for a device with graphs."""
    monkeypatch.setattr(cuda_graph, "_obstacle", lambda learner: None)
    monkeypatch.setattr(cuda_graph, "_Graph", Repeated)
    monkeypatch.setattr(Repeated, "recorded", 0)
    monkeypatch.setattr(random, "getstate", COIN.getstate)


def learner_for(method, **settings):
    configuration = gs.RunConfiguration(
        data="rotated-digits", target="0", method=method, settings=settings, device="cpu"
    )
    built = build_backbone("small-cnn", classes=10, weights="none", seed=0, image_size=20)
    return build_learner(configuration, built, torch.device("cpu"))


def run(learner, mode, *, steps=STEPS):
    """The losses of some steps, the weights after them, and what took the steps."""
    said = []

    taken = GraphedSteps(learner, mode, said.append)
    losses = []
    for step in range(1, steps + 1):
        torch.manual_seed(step)
        learner.generator.manual_seed(step)
        generator = torch.Generator().manual_seed(step)
        batches = [
            (torch.randn(4, 3, 20, 20, generator=generator), torch.arange(4)) for _ in range(3)
        ]
        losses.append(taken.take(batches, step).losses)
    weights = torch.cat([p.detach().flatten() for p in learner.backbone.model.parameters()])
    return torch.stack(losses), weights, taken


@pytest.mark.parametrize("method", ["deep-all", "agr-sum", "agr-rand", "pcgrad", "and-mask"])
def test_steps_with_a_graph_are_those_without(method):
    losses, weights, taken = run(learner_for(method), "auto")
    expected, expected_weights, _ = run(learner_for(method), "off")
    assert taken.replays
    assert Repeated.recorded == 1
    torch.testing.assert_close(losses, expected, rtol=0, atol=0)
    torch.testing.assert_close(weights, expected_weights, rtol=0, atol=0)


def test_another_formula_of_the_losses_is_recorded_anew():
    learner = learner_for("irm", **{"irm.anneal": 6})
    losses, weights, taken = run(learner, "auto")
    expected, expected_weights, _ = run(learner_for("irm", **{"irm.anneal": 6}), "off")
    assert taken.replays
    assert Repeated.recorded == 2  # steps 1 to 6, and 8 on; step 7 drops the optimiser's state
    torch.testing.assert_close(losses, expected, rtol=0, atol=0)
    torch.testing.assert_close(weights, expected_weights, rtol=0, atol=0)


def test_a_graph_is_let_go_once_its_last_replay_has_run(monkeypatch):
    """The tables that a replay copies to the device are memory of the host, which goes with it."""
    learner = learner_for("irm", **{"irm.anneal": 6})
    events = []

    class Counted(Repeated):
        def replay(self, batches):
            events.append("replayed")
            return super().replay(batches)

        def __del__(self):
            events.append("gone")

    monkeypatch.setattr(cuda_graph, "_Graph", Counted)
    monkeypatch.setattr(cuda_graph, "_wait_for", lambda device: events.append("waited"))
    run(learner, "auto")
    assert events[:5] == ["replayed", "replayed", "replayed", "waited", "gone"]


def test_a_replay_that_differs_is_never_used(monkeypatch):
    class Frozen(Repeated):
        """Draws its noise once and for all, as a step that draws on the host would be recorded."""

        def replay(self, batches):
            return super().replay([(images + 1e-6, labels) for images, labels in batches])

    monkeypatch.setattr(cuda_graph, "_Graph", Frozen)
    losses, weights, taken = run(learner_for("agr-sum"), "auto")
    expected, expected_weights, _ = run(learner_for("agr-sum"), "off")
    assert taken.refusal == "a replayed step differs from the step itself"
    torch.testing.assert_close(losses, expected, rtol=0, atol=0)
    torch.testing.assert_close(weights, expected_weights, rtol=0, atol=0)


class Beside(Repeated):
    """Knows whether the domains' passes were recorded side by side."""

    def __init__(self, learner, batches, take):
        self.beside = lanes._wanted.now
        super().__init__(learner, batches, take)


class Differing(Beside):
    def replay(self, batches):
        off = 1e-6 * self.beside
        return super().replay([(images + off, labels) for images, labels in batches])


class Unrecorded(Beside):
    def __init__(self, learner, batches, take):
        super().__init__(learner, batches, take)
        if self.beside:
            raise RuntimeError("dependency created on uncaptured work in another stream")


class Larger(Beside):
    def replay(self, batches):
        result = super().replay(batches)
        if self.beside:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result


@pytest.mark.parametrize("graph", [Differing, Unrecorded, Larger])
@pytest.mark.parametrize("mode", ["auto", "on"])
def test_passes_that_cannot_be_side_by_side_are_recorded_in_turn(graph, mode, monkeypatch):
    monkeypatch.setattr(cuda_graph, "_Graph", graph)
    monkeypatch.setattr(graph, "recorded", 0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    losses, weights, taken = run(learner_for("agr-sum"), mode)
    expected, expected_weights, _ = run(learner_for("agr-sum"), "off")
    assert taken.replays
    assert graph.recorded == 2
    assert not taken._graph.beside
    torch.testing.assert_close(losses, expected, rtol=0, atol=0)
    torch.testing.assert_close(weights, expected_weights, rtol=0, atol=0)


def test_passes_are_side_by_side_while_a_step_is_recorded_alone(monkeypatch):
    monkeypatch.setattr(cuda_graph, "_Graph", Beside)
    _, _, taken = run(learner_for("agr-sum"), "auto")
    assert taken._graph.beside
    assert not lanes._wanted.now


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("gradvac", "keeps a state of its own"),
        ("agr-ema", "keeps a state of its own"),
        ("group-dro", "another thing at every step"),
        ("mixup", "another thing at every step"),
        ("mldg", "another thing at every step"),
    ],
)
def test_what_a_graph_would_not_repeat_is_not_recorded(method, reason):
    _, _, taken = run(learner_for(method), "auto", steps=5)
    assert reason in taken.refusal
    assert Repeated.recorded == 0
    with pytest.raises(ArgumentError, match=reason):
        run(learner_for(method), "on", steps=5)


def test_an_objective_of_somebody_else_is_not_recorded():
    class Growing(gs.Objective):
        def losses(self, forward, batches, step):
            logits = forward([images for images, _ in batches])
            for z, (_, labels) in zip(logits, batches, strict=True):
                yield step * cross_entropy(z, labels)

    learner = learner_for("agr-sum")
    learner.algorithm = gs.method(Growing(), rule=gs.AgrSum())
    assert "another thing at every step" in run(learner, "auto")[2].refusal


def test_a_step_that_cannot_be_recorded_is_taken_as_it_is(monkeypatch):
    def refuse(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graph, "_Graph", refuse)
    losses, _, taken = run(learner_for("agr-sum"), "auto")
    assert "not permitted when stream is capturing" in taken.refusal
    torch.testing.assert_close(losses, run(learner_for("agr-sum"), "off")[0], rtol=0, atol=0)


@pytest.mark.parametrize("draw", [lambda: torch.rand(()), COIN.random, np.random.random])
def test_a_network_that_throws_a_coin_on_the_processor_is_not_recorded(draw):
    """The two replays that are compared may fall as the recorded step did, by chance."""
    learner = learner_for("agr-sum")
    learner.host_generator = torch.Generator()  # as where the processor is not the device
    learner.backbone.model.eval()
    learner.backbone.model.register_forward_hook(lambda *_: draw() and None)
    assert "draws random numbers on the processor" in run(learner, "auto")[2].refusal
    assert Repeated.recorded == 0


@pytest.mark.parametrize(("version", "registered"), [("2.11.0+cu130", True), ("2.14.1", False)])
def test_the_generator_is_registered_where_torch_does_not_do_it(version, registered, monkeypatch):
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    monkeypatch.setattr(cuda_graph, "_recording", lambda *_: nullcontext())
    graph = mock.Mock()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    learner = learner_for("agr-rand")
    RECORDED(learner, [(torch.ones(1, 3, 20, 20), torch.arange(1))], lambda _: None)
    calls = [mock.call(learner.generator)] if registered else []
    assert graph.register_generator_state.mock_calls == calls


class Generator(torch.Generator):
    """A GPU's, as far as a recording goes: it refuses to draw while it takes part in one."""

    device = torch.device("cuda")
    recording = False

    def clone_state(self):
        return Generator()

    def graphsafe_set_state(self, other):
        self.recording = other.recording


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("device", ["cuda:1", "cuda"])
def test_a_recording_that_fails_leaves_torch_as_it_was(device, ended, monkeypatch):
    """`torch.Generator("cuda").device` has no number: it is the current device's."""
    own, default = Generator(), Generator()
    own.device = torch.device(device)
    said, streams = [], ["before"]

    @contextmanager
    def graph(_, *, pool, stream, capture_error_mode):
        own.recording = default.recording = True
        streams.append(stream)  # torch leaves it current where the end of a recording fails
        try:
            yield
        finally:
            if not ended:
                raise RuntimeError("operation failed due to a previous error during capture")
            own.recording = default.recording = False

    def end_allocating(index, pool):
        if ended:
            raise RuntimeError("not currently recording to the pool")
        said.append(("ended", index, pool))

    @contextmanager
    def restoring(stream):
        before = list(streams)
        try:
            yield
        finally:
            streams[:] = before

    monkeypatch.setattr(cuda_graph, "_recording_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "default_generators", (None, default))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
    monkeypatch.setattr(torch.cuda, "stream", restoring)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end_allocating)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda *of: said.append(("released", *of)))

    def record():
        with cuda_graph._recording(None, own):
            assert streams[-1] == "stream of 1"
            raise ArgumentError("a layer that waits")

    with pytest.raises((RuntimeError, ArgumentError), match=r"previous error|a layer that waits"):
        record()
    assert streams == ["before"]
    assert not own.recording
    assert not default.recording
    assert said == ([] if ended else [("ended", 1, (0, 7)), ("released", 1, (0, 7))])


def test_a_processor_has_no_graphs(monkeypatch):
    monkeypatch.undo()
    _, _, taken = run(learner_for("agr-sum"), "auto", steps=1)
    assert taken.refusal == "there is no GPU"
    assert taken.outcome is None
    with pytest.raises(ArgumentError, match="there is no GPU; leave it at auto"):
        run(learner_for("agr-sum"), "on", steps=1)


def test_a_subclass_with_losses_of_its_own_is_not_recorded():
    class Ramp(type(gs.method("deep-all").objective)):
        def losses(self, forward, batches, step):
            for loss in super().losses(forward, batches, step):
                yield loss * (10 if step > 6 else 1)

    learner = learner_for("agr-sum")
    learner.algorithm = gs.method(Ramp(), rule=gs.AgrSum())
    assert "another thing at every step" in run(learner, "auto")[2].refusal


def test_where_memory_ends_the_step_is_taken_as_it_is(monkeypatch):
    """With all memory that it had before there was a graph."""
    held, graphs, put_back = [], [], cuda_graph._put_back

    class Large(Repeated):
        def replay(self, batches):
            graphs.append(weakref.ref(self))
            of_the_step = super().replay(batches).losses
            held.append(weakref.ref(of_the_step))
            raise RuntimeError("CUDA error: out of memory")  # of a graph's own memory

    def watched(state, values):
        held.extend(map(weakref.ref, values))
        put_back(state, values)

    def waited(device):
        assert graphs[-1]() is not None  # whose replay may be under way

    def refuse(taken, reason):
        held.append([reference for reference in held + graphs if reference() is not None])
        taken.refusal = reason

    monkeypatch.setattr(cuda_graph, "_Graph", Large)
    monkeypatch.setattr(cuda_graph, "_put_back", watched)
    waits = mock.Mock(side_effect=waited)
    monkeypatch.setattr(cuda_graph, "_wait_for", waits)
    monkeypatch.setattr(GraphedSteps, "_refuse", refuse)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    losses, weights, taken = run(learner_for("agr-rand"), "auto")
    expected, expected_weights, _ = run(learner_for("agr-rand"), "off")
    *references, alive = held
    assert len(references) > 2
    assert alive == []
    assert waits.call_count == len(graphs) == 2  # side by side, and one after the other
    assert "no memory for a graph" in taken.refusal
    torch.testing.assert_close(losses, expected, rtol=0, atol=0)
    torch.testing.assert_close(weights, expected_weights, rtol=0, atol=0)


class Counting(torch.nn.Module):
    """Passes its input on, times a buffer of its own that every forward pass writes to."""

    def __init__(self):
        super().__init__()
        self.register_buffer("passes", torch.ones(()))

    def forward(self, x):
        self.passes.add_(0)
        return x * self.passes.clone()


class Shifting(torch.nn.BatchNorm2d):
    """Reads the statistics that it writes."""

    def forward(self, x):
        return super().forward(x) + self.running_mean.clone()[:, None, None]


@pytest.mark.parametrize(
    ("layer", "beside"),
    [
        (torch.nn.Identity, True),
        (Counting, False),
        (lambda: torch.nn.BatchNorm2d(3), True),
        (lambda: Shifting(3), False),
    ],
)
def test_a_network_that_writes_to_buffers_has_its_passes_in_turn(layer, beside, monkeypatch):
    """No forward pass waits for the backward pass before, which may read what it writes."""
    monkeypatch.setattr(cuda_graph, "_Graph", Beside)
    learner = learner_for("agr-sum")
    model = torch.nn.Sequential(layer(), learner.backbone.model).train()
    learner.backbone = replace(learner.backbone, model=model)
    _, _, taken = run(learner, "auto")
    assert taken.replays
    assert taken.side_by_side == taken._graph.beside == beside


def test_a_validation_that_has_no_memory_beside_the_graph_is_done_without(monkeypatch):
    """First without the memory of passes side by side, then without a graph."""
    monkeypatch.setattr(cuda_graph, "_Graph", Beside)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    learner = learner_for("agr-sum")
    said = []
    taken = GraphedSteps(learner, "auto", said.append)
    found = []

    def validate():
        found.append(None if taken._graph is None else taken._graph.beside)
        if taken._graph is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "validated"

    for step in range(1, 13):
        batches = [(torch.randn(4, 3, 20, 20), torch.arange(4)) for _ in range(3)]
        taken.take(batches, step)
        if step % 6 == 0:
            assert taken.beside(validate) == "validated"
            assert not taken.replays  # the next graph is compared first
    assert found == [True, None, False, None]
    assert taken.refusal == "there is no memory for a graph beside a validation"
    with pytest.raises(ValueError, match="of another kind"):
        taken.beside(mock.Mock(side_effect=ValueError("of another kind")))
    with pytest.raises(torch.OutOfMemoryError):
        taken.beside(mock.Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory")))


def test_a_run_validates_beside_its_graph(configured, images, tmp_path, monkeypatch):
    validated = []

    def beside(steps, work):
        validated.append(work())
        return validated[-1]

    monkeypatch.setattr(GraphedSteps, "beside", beside)
    curves = gs.train(configured(), tmp_path, opened=images).curves
    assert curves.validation_loss == [evaluation.loss for evaluation in validated]


@pytest.mark.parametrize(("mode", "said"), [("auto", True), ("off", False)])
def test_an_error_about_memory_names_the_graph_which_takes_some(mode, said):
    learner = learner_for("agr-sum")
    learner.device = torch.device("cuda", 0)
    configuration = gs.RunConfiguration(data="rotated-digits", target="0", cuda_graph=mode)
    with (
        pytest.raises(GradsurgeryError, match="lower --batch-size or --image-size") as caught,
        loop._naming_what_takes_memory(learner, configuration),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert ("--cuda-graph off" in str(caught.value)) == said
