"""What a forward pass may change: of the model, and of the generators of random numbers."""

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Restore = Callable[[], None]
_NEVER_LOOKED_INTO = (type, FunctionType, MethodType, BuiltinFunctionType, ModuleType, str, bytes)


@contextmanager
def unchanged(*roots: object) -> Iterator["ModelState"]:
    """Inside, modules may run; afterwards they and the random state are as they were before.

    roots: the modules, or whatever else is called; what is no module has no state here.

    Parameters keep their `.grad`, which is None inside. Raises nothing of its own.
    """
    modules = [root for root in roots if isinstance(root, nn.Module)]
    parameters = {id(p): p for root in modules for p in root.parameters()}.values()
    state = ModelState(modules)
    grads = [(p, p.grad, p.requires_grad) for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield state
    finally:
        state.restore()
        for parameter, grad, trained in grads:
            parameter.grad = grad
            parameter.requires_grad_(trained)


class ModelState:
    """Everything that hangs on some modules, but the values of their parameters.

    That is: their attributes, in lists, dictionaries and sets too and one level into other objects,
    with the values of tensors and arrays; the order and kind of their layers, buffers and hooks;
    their mode; generators among the attributes; and the global generators of torch, its CUDA
    devices, numpy and Python. The weights of embeddings with `max_norm` belong to it, since a
    forward pass changes them.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._seen: dict[int, object] = {}  # the objects are kept, so that their ids stay theirs
        self._restores: list[Restore] = []
        for module in modules:
            self._look_at(module, depth=1)
        self._random = RandomState()

    def restore(self) -> None:
        """Put all of it back; may be called again after further passes."""
        for restore in self._restores:
            restore()
        self._random.restore()

    def has_drawn(self) -> bool:
        """Whether a global generator has been used since."""
        return not self._random.is_current()

    def _look_at(self, value: object, depth: int) -> None:
        if id(value) in self._seen or value is None:
            return
        if isinstance(value, (*_NEVER_LOOKED_INTO, nn.Parameter, int, float)):
            return
        self._seen[id(value)] = value
        if isinstance(value, nn.Module):
            self._look_at(vars(value), depth=1)
            if getattr(value, "max_norm", None) is not None:
                self._restores += [_tensor(parameter) for parameter in value.parameters()]
            return
        restore = _restore_of(value)
        if restore is not None:
            self._restores.append(restore)
            for part in _parts(value):
                self._look_at(part, depth)
        elif depth and hasattr(value, "__dict__"):
            self._look_at(vars(value), depth - 1)


def _parts(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple, set, deque)) else []


def _restore_of(value: Any) -> Restore | None:
    """What puts `value` back as it is now, None for a kind of object that is not known."""
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, (dict, set)):
        return _container(value, value.update)
    if isinstance(value, (list, deque)):
        return _container(value, value.extend)
    if isinstance(value, (tuple, frozenset)):
        return lambda: None  # but what is in it may change
    if isinstance(value, np.ndarray):
        array = value.copy()
        return lambda: np.copyto(value, array) if value.flags.writeable else None
    if isinstance(value, torch.Generator):
        state = value.get_state()
        return lambda: value.set_state(state) and None
    if isinstance(value, random.Random):
        python = value.getstate()
        return lambda: value.setstate(python)
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator.state
        return lambda: setattr(value.bit_generator, "state", bits)
    return None


def _container(value: Any, fill: Callable[[Any], object]) -> Restore:
    contents = dict(value) if isinstance(value, dict) else list(value)

    def restore() -> None:
        value.clear()
        fill(contents)

    return restore


def _tensor(value: Tensor) -> Restore:
    if not value.is_leaf or value.is_sparse or value.is_meta:
        return lambda: None  # one that was computed is replaced, not written into
    copy = value.detach().clone()

    def restore() -> None:
        now = value.detach()
        if now.shape != copy.shape or now.dtype != copy.dtype:
            value.data = copy.clone()
        elif not torch.equal(now, copy):
            value.data.copy_(copy)

    return restore


class RandomState:
    """That of the global generators of torch, its CUDA devices, numpy and Python."""

    def __init__(self) -> None:
        self._states = _random_states()

    def is_current(self) -> bool:
        """Whether nothing has been drawn since."""
        now = _random_states()
        return len(now) == len(self._states) and all(
            torch.equal(one, other) if isinstance(one, Tensor) else one == other
            for one, other in zip(now, self._states, strict=True)
        )

    def restore(self) -> None:
        """Go back to it."""
        python, kind, key, *numbers, cpu = self._states[:7]
        random.setstate(python)
        np.random.set_state((kind, np.frombuffer(key, np.uint32), *numbers))
        torch.set_rng_state(cpu)
        for device, state in enumerate(self._states[7:]):
            torch.cuda.set_rng_state(state, device)


def _random_states() -> list[Any]:
    kind, key, *numbers = np.random.get_state()
    devices = torch.cuda.device_count() if torch.cuda.is_initialized() else 0
    cuda = [torch.cuda.get_rng_state(device) for device in range(devices)]
    legacy = [kind, np.asarray(key).tobytes(), *numbers]
    return [random.getstate(), *legacy, torch.get_rng_state(), *cuda]
