"""Where the passes of the domains run: one after the other, or beside one another on a GPU.

The images of one domain seldom fill a card. In a CUDA graph the backward passes of a few domains
run beside one another, and beside the forward passes that follow, each on a stream of its own.
What is computed stays the same; only what waits for what is less.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

TOGETHER = 4
"""How many domains' passes run beside one another; the gradients of so many are held."""


class _Wanted(threading.local):
    """Whether what this thread records is to run side by side."""

    now = False


_wanted = _Wanted()


@contextmanager
def side_by_side(wanted: bool = True) -> Iterator[None]:
    """Inside, passes that are recorded as a CUDA graph run beside one another.

    For losses that share no graph: a backward pass through a part of another domain's graph is
    right as well, and waits for it.
    """
    before, _wanted.now = _wanted.now, wanted
    _warn_of_streams(False)
    try:
        yield
    finally:
        _wanted.now = before
        _warn_of_streams(True)


def _warn_of_streams(wanted: bool) -> None:
    """Have torch, where it does, warn of a pass that meets what is left of one on another stream.

    It does while an objective still holds the logits of the domain before, and waits as it has to.
    """
    setter = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)
    if setter is not None:
        setter(wanted)


class Lanes:
    """The streams that the domains' passes take turns on; without any, the current one.

    A group of `together` domains forks off the current stream, and is joined to it. What a loss is
    computed from goes in the order of the program: a lane begins where the loss before was made.
    """

    def __init__(self, streams: Sequence[Any] = ()) -> None:
        self.together = max(len(streams), 1)
        self._streams = streams
        self._used = 0
        self._made: Any = None

    @contextmanager
    def pass_of_next(self) -> Iterator[None]:
        """Inside, the loss of the next domain is made and gone back from."""
        if not self._streams:
            yield
            return
        stream = self._streams[self._used]
        if self._used:
            stream.wait_event(self._made)
        else:
            stream.wait_stream(torch.cuda.current_stream(stream.device))
        self._used += 1
        with torch.cuda.stream(stream):
            yield

    def loss_is_made(self) -> None:
        """The next lane may begin from here on."""
        if self._streams:
            self._made = self._streams[self._used - 1].record_event()

    def join(self) -> None:
        """What comes next on the current stream comes after all that was done so far."""
        for stream in self._streams[: self._used]:
            torch.cuda.current_stream(stream.device).wait_stream(stream)
        self._used = 0


def lanes_on(device: torch.device) -> Lanes:
    """One lane, or several where a graph is being recorded `side_by_side`."""
    if not _wanted.now or device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
        return Lanes()
    return Lanes(_streams_of(device))


@cache
def _streams_of(device: torch.device) -> list[torch.cuda.Stream]:
    """The same for all graphs of a device, as each has memory of its own in torch's libraries."""
    return [torch.cuda.Stream(device) for _ in range(TOGETHER)]
