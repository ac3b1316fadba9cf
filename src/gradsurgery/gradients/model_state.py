"""What lets a pass be made again: the model's state, generators, and each sample's draws."""

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from gradsurgery.errors import ArgumentError

Restore = Callable[[], object]
_NEVER_LOOKED_INTO = (
    *(type, FunctionType, MethodType, BuiltinFunctionType, ModuleType),
    *(type(None), str, bytes, int, float),
)


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
        self._of_torch = _torch_states()
        self._restore_random = _global_generators(self._of_torch)

    def restore(self, *, random: bool = True) -> None:
        """Put all of it back; may be called again after further passes.

        random: the global generators too.
        """
        for restore in self._restores:
            restore()
        if random:
            self._restore_random()

    def has_drawn(self) -> bool:
        """Whether a global generator of torch has been used since.

        What numpy and Python draw is rarely for one sample, and the same after `restore`.
        """
        return not all(map(torch.equal, self._of_torch, _torch_states()))

    def _look_at(self, value: object, depth: int) -> None:
        if isinstance(value, _NEVER_LOOKED_INTO) or id(value) in self._seen:
            return
        if isinstance(value, nn.Parameter):
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
    restore: Restore | None = None
    if isinstance(value, Tensor):
        restore = _tensor(value)
    elif isinstance(value, (dict, set)):
        restore = _container(value, value.update)
    elif isinstance(value, (list, deque)):
        restore = _container(value, value.extend)
    elif isinstance(value, (tuple, frozenset)):
        restore = _nothing  # but what is in it may change
    elif isinstance(value, np.ndarray) and value.flags.writeable:
        restore = partial(np.copyto, value, value.copy())
    elif isinstance(value, torch.Generator):
        restore = partial(value.set_state, value.get_state())
    elif isinstance(value, random.Random):
        restore = partial(value.setstate, value.getstate())
    elif isinstance(value, np.random.Generator):
        restore = partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    return restore


def _nothing() -> None:
    """For what cannot change."""


def _container(value: Any, fill: Callable[[Any], object]) -> Restore:
    if not value:  # as most dictionaries of a module are
        restore_empty: Restore = value.clear
        return restore_empty
    return partial(_refill, value, fill, dict(value) if isinstance(value, dict) else list(value))


def _refill(container: Any, fill: Callable[[Any], object], contents: object) -> None:
    container.clear()
    fill(contents)


def _tensor(value: Tensor) -> Restore:
    if not value.is_leaf or value.is_sparse or value.is_meta:
        return _nothing  # one that was computed is replaced, not written into
    return partial(_write_back, value, value.detach().clone())


def _write_back(tensor: Tensor, copy: Tensor) -> None:
    now = tensor.detach()
    if now.shape != copy.shape or now.dtype != copy.dtype:
        tensor.data = copy.clone()
    elif not torch.equal(now, copy):
        tensor.data.copy_(copy)


def _global_generators(of_torch: list[Tensor]) -> Restore:
    """What puts those of torch, its CUDA devices, numpy and Python back."""
    of_numpy = np.random.get_state()  # noqa: NPY002, because a network may draw from it
    of_python = random.getstate()

    def restore() -> None:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002
        cpu, *devices = of_torch
        torch.set_rng_state(cpu)
        for device, state in enumerate(devices):
            torch.cuda.set_rng_state(state, device)

    return restore


def _torch_states() -> list[Tensor]:
    devices = torch.cuda.device_count() if torch.cuda.is_initialized() else 0
    return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, range(devices))]


_DROPOUT = torch.ops.aten.native_dropout.default


class Draws(TorchDispatchMode):
    """Entered around a pass over N samples, remembers what is drawn: masks of dropout, noise.

    With `given`, entered around a pass over one sample, gives it its part of these draws.
    """

    def __init__(self, samples: int, given: "tuple[Draws, int] | None" = None) -> None:
        super().__init__()
        self.samples = samples
        self.drawn: list[Tensor] = []
        self._given = given

    @override
    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded not in func.tags or _drops_nothing(func, args, kwargs):
            return result
        _check_known(func, args)
        numbers = result[1] if func is _DROPOUT else result
        if self._given is not None:
            draws, sample = self._given
            numbers.copy_(draws._part_of(sample, len(self.drawn), numbers.shape))
            if func is _DROPOUT:
                inputs, probability = args[:2]
                result[0].copy_(
                    inputs * numbers * (1 / (1 - probability) if probability < 1 else 0)
                )
        self.drawn.append(numbers.clone())
        return result

    def _part_of(self, sample: int, place: int, shape: torch.Size) -> Tensor:
        """Of one draw the part that is the sample's, or all of it where it is not by sample."""
        drawn = self.drawn[place] if place < len(self.drawn) else torch.empty(0)
        if drawn.shape == shape:
            return drawn
        sizes = zip(drawn.shape, shape, strict=False)
        apart = [at for at, (of_all, own) in enumerate(sizes) if of_all != own]
        if drawn.ndim == len(shape) and len(apart) == 1:
            own = shape[apart[0]]
            if drawn.shape[apart[0]] == self.samples * own:
                return drawn.narrow(apart[0], sample * own, own)
        raise ArgumentError(
            f"the network draws random numbers of shape {list(shape)} for sample {sample} alone, "
            f"which are no part of those that it draws for {self.samples} samples; call "
            "model.eval(), or draw numbers for each sample"
        )


def _drops_nothing(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> bool:
    """Whether this is an attention without dropout, which draws nothing."""
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
    return "dropout_p" in names and given.get("dropout_p", 0.0) == 0


def _check_known(func: Any, args: Sequence[Any]) -> None:
    """Raise `ArgumentError` where numbers cannot be given again."""
    name = func.overloadpacket.__name__
    given = [one for one in args if isinstance(one, Tensor)]
    plain = not given or (len(given) == 1 and (name.endswith(("_", "_like")) or func is _DROPOUT))
    if plain and torch._C._autograd._top_saved_tensors_default_hooks(True) is None:
        return
    where = f"by {name}" if not plain else "inside torch.utils.checkpoint"
    raise ArgumentError(
        f"the network draws random numbers {where}, and whether samples see each other cannot be "
        "checked there; call model.eval(), or draw them elsewhere"
    )
