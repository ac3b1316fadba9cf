"""What waits for what where domains' passes run side by side; stand-ins for streams keep account.

Each has a clock of what it has done and of what it has waited for on the others (vector clocks).
"""

from contextlib import contextmanager

import pytest
import torch

from gradsurgery.engine import lanes, passes
from gradsurgery.engine.accumulator import Accumulator, Update
from gradsurgery.engine.passes import DomainPasses
from gradsurgery.errors import ArgumentError

CUDA = torch.device("cuda", 0)


class Stream:
    device = CUDA

    def __init__(self):
        self.clock = {self: 0}

    def record_event(self):
        self.clock[self] += 1
        return dict(self.clock)

    def wait_event(self, event):
        for stream, time in event.items():
            self.clock[stream] = max(time, self.clock.get(stream, 0))

    def wait_stream(self, other):
        self.wait_event(other.record_event())


class Device:
    """The current stream, and when what was done."""

    def __init__(self):
        self.main = self.current = Stream()
        self.streams = [Stream() for _ in range(lanes.TOGETHER)]
        self.done = {}

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def do(self, *what):
        self.done[what] = self.current, self.current.record_event()

    def waits(self, later, earlier):
        """Whether what was done later can only begin when the other has ended."""
        stream, event = self.done[earlier]
        return self.done[later][1].get(stream, 0) >= event[stream]


class Received(Accumulator):
    at_once = False

    def __init__(self, device):
        super().__init__([])
        self.device = device
        self.gradients = []

    def receive(self, position, domain, gradient):
        raise AssertionError

    def receive_domain(self, domain, gradients):
        assert domain == len(self.gradients)
        self.device.do("receive", domain)
        self.gradients.append(gradients[0].tolist())

    def finish(self, domains, *, poison):
        return Update([])


@pytest.fixture
def device(monkeypatch):
    device = Device()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _=None: device.current)
    monkeypatch.setattr(torch.cuda, "stream", device.stream)
    monkeypatch.setattr(passes, "lanes_on", lambda _: lanes.Lanes(device.streams))
    return device


def run(device, losses):
    """What is received of the losses made of a weight of two components."""
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    accumulator = Received(device)

    def back(gradient):
        device.do("backward", sum(kind == "backward" for kind, _ in device.done))

    weight.register_hook(back)
    values = DomainPasses([weight], accumulator, None).run(losses(weight))
    device.do("after", 0)
    return torch.stack(values).tolist(), accumulator.gradients


def one_by_one(device, domains):
    def losses(weight):
        for domain in range(domains):
            device.do("forward", domain)
            yield (domain + 1) * (weight**2).sum()

    return losses


@pytest.mark.parametrize("domains", [1, 2, 3, 4, 5, 8, 9])
def test_only_what_has_to_wait_does(device, domains):
    values, gradients = run(device, one_by_one(device, domains))
    assert values == [5.0 * (d + 1) for d in range(domains)]
    assert gradients == [[2.0 * (d + 1), 4.0 * (d + 1)] for d in range(domains)]
    for d in range(domains):
        assert device.waits(("backward", d), ("forward", d))
        assert device.waits(("receive", d), ("backward", d))
        assert device.done["receive", d][0] is device.main
        group = d - d % lanes.TOGETHER
        for earlier in range(d):
            assert device.waits(("forward", d), ("forward", earlier))
            together = earlier >= group
            assert device.waits(("forward", d), ("backward", earlier)) != together
            assert device.waits(("forward", d), ("receive", earlier)) != together
            assert device.waits(("backward", d), ("backward", earlier)) != together
    for what in device.done:
        assert device.waits(("after", 0), what)


def test_losses_that_are_made_of_all_domains_wait_for_them(device):
    """As V-REx makes all passes before the first loss is asked for."""

    def losses(weight):
        for domain in range(3):
            device.do("forward", domain)
        for domain in range(3):
            device.do("loss", domain)
            yield (domain + 1) * weight.sum()
        device.do("end", 0)

    run(device, losses)
    for later in range(3):
        for earlier in range(3):
            assert device.waits(("loss", later), ("forward", earlier))
    assert device.waits(("end", 0), ("loss", 2))
    assert device.waits(("after", 0), ("end", 0))


def test_micro_batches_go_one_domain_after_the_other(device):
    def losses(weight):
        for domain in range(2):
            device.do("forward", domain)
            yield (part * weight.sum() for part in (1.0, 2.0))

    values, gradients = run(device, losses)
    assert values == [9.0, 9.0]
    assert gradients == [[3.0, 3.0], [3.0, 3.0]]
    assert device.waits(("forward", 1), ("backward", 1))  # the second part of domain 0


def test_losses_of_one_forward_pass_have_one_lane(device):
    run(device, lambda weight: list((weight * torch.ones(3, 1)).sum(1)))
    assert {stream for stream, _ in device.done.values()} == {device.main}


def test_an_error_leaves_nothing_behind_that_is_not_joined(device):
    def losses(weight):
        device.do("forward", 0)
        yield weight.sum()
        device.do("forward", 1)
        raise ArgumentError("a fault")

    with pytest.raises(ArgumentError, match="a fault"):
        run(device, losses)
    assert device.current is device.main
    device.do("after", 0)
    for what in device.done:
        assert device.waits(("after", 0), what)


def test_there_are_several_lanes_where_a_graph_is_recorded_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(lanes, "_streams_of", lambda device: [Stream() for _ in range(3)])
    assert lanes.lanes_on(CUDA).together == 1
    with lanes.side_by_side():
        assert lanes.lanes_on(CUDA).together == 3
        assert lanes.lanes_on(torch.device("cpu")).together == 1
        with lanes.side_by_side(False):
            assert lanes.lanes_on(CUDA).together == 1
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        assert lanes.lanes_on(CUDA).together == 1
    assert lanes.lanes_on(CUDA).together == 1
