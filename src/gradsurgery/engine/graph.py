"""What autograd's graph behind a loss says before a backward pass runs."""

from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from gradsurgery.errors import ArgumentError

_ENDS = ("AccumulateGrad",)


class Behind(NamedTuple):
    """What a loss goes back to.

    leaves: the tensors in whose `.grad` its graph ends; the loss itself where it is one.
    own_passes: whether the graph has a function that somebody has written. It may run a backward
        pass of its own, as reversible layers do, and give gradients to parameters that the graph
        does not show; it runs only where one of its leaves is asked for.
    """

    leaves: list[Tensor]
    own_passes: bool


def what_is_behind(loss: Tensor, whose: str, known: Container[type] = ()) -> Behind:
    """What the loss goes back to.

    known: functions that run no backward pass.

    Raises `ArgumentError` for reentrant checkpointing, which hides a part of the graph.
    """
    nodes = graph_of(loss, ends=())
    kinds = {type(node) for node in nodes}
    if any(kind.__name__.startswith("CheckpointFunction") for kind in kinds):
        raise ArgumentError(
            f"the loss {whose} goes through torch.utils.checkpoint with use_reentrant=True, which "
            "hides parameters; use use_reentrant=False"
        )
    own = any(_is_somebodys(kind) and kind not in known for kind in kinds)
    ends = [node.variable for node in nodes if type(node).__name__ in _ENDS]
    return Behind([loss] if loss.is_leaf else ends, own)


def _is_somebodys(kind: type) -> bool:
    """Whether a node is of a function in Python that is not torch's own, as a compiled one is."""
    if not issubclass(kind, BackwardCFunction):
        return False
    return not str(kind._forward_cls.__module__).startswith("torch.")  # type: ignore[attr-defined]


def shared_with_later(losses: Sequence[Tensor | Iterable[Tensor]]) -> Iterator[bool]:
    """For every loss, micro-batch by micro-batch, whether a later one goes through its graph.

    What nothing later needs is freed by its own pass, as autograd does.
    """
    flat: list[Any] = []
    for domain in losses:
        if isinstance(domain, list | tuple):
            flat += domain
        elif isinstance(domain, Tensor):
            flat.append(domain)
        else:  # an iterator makes its losses later, from graphs that nobody can see yet
            return repeat(True)
    later: set[Any] = set()
    kept = []
    for loss in reversed(flat):
        nodes = graph_of(loss) if isinstance(loss, Tensor) else set()
        kept.append(not later.isdisjoint(nodes))
        later |= nodes
    return reversed(kept)


def graph_of(loss: Tensor, ends: tuple[str, ...] = _ENDS) -> set[Any]:
    """The nodes of autograd's graph behind `loss`, as far as those of the kinds `ends`."""
    nodes: set[Any] = set()
    waiting: list[Any] = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in nodes or type(node).__name__ in ends:
            continue
        nodes.add(node)
        waiting += [before for before, _ in node.next_functions]
    return nodes
