"""Counts what a step would ask of an accelerator: kernel launches, synchronisations, copies.

No accelerator is needed: the tensors lie on the processor and are taken for an accelerator's, but
for those that Python makes without naming a device, or on "cpu", and what is computed of them
alone. Such a host tensor costs no launch; moving it to a device, `.to(device)`, is a copy, and a
synchronisation unless it is `non_blocking`; reading a device's tensor (`.item()`, `bool(t)`,
`.tolist()`, `.cpu()`, `nonzero` …) is both.
"""

import ctypes
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations that launch nothing although their schema does not call them views.
_NO_KERNEL = {
    "_unsafe_view",
    "_assert_tensor_metadata",
    "empty",
    "empty_like",
    "empty_permuted",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "promote_types",
    "record_stream",
    "resize_",
    "set_",
}
# The size of their result is decided on the device: the host has to wait for it.
_SIZED_BY_VALUES = {"nonzero", "masked_select", "unique_consecutive", "_unique2", "equal"}
_FACTORIES = ("arange", "empty", "eye", "full", "ones", "rand", "randint", "randperm", "zeros")

# What one launch of torch's multi-tensor kernels takes (ATen/native/cuda/MultiTensorApply.cuh).
_MOST_TENSORS = (110, 64, 48, 36, 30)  # by the number of lists
_MOST_BLOCKS, _BLOCK = 320, 65_536
_MOST_JOINED = 128  # that one launch of torch.cat takes (ATen/native/cuda/Shape.cu)


@dataclass(frozen=True)
class Counts:
    """Of one step."""

    launches: int
    synchronisations: int
    copies: int

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(
            self.launches - other.launches,
            self.synchronisations - other.synchronisations,
            self.copies - other.copies,
        )


@dataclass
class Recording:
    """What was seen, by the name of the operation."""

    launches: Counter[str] = field(default_factory=Counter)
    synchronisations: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)

    @property
    def counts(self) -> Counts:
        """The totals."""
        return Counts(self.launches.total(), self.synchronisations.total(), self.copies.total())

    def clear(self) -> None:
        """Count from 0 again."""
        for counter in (self.launches, self.synchronisations, self.copies):
            counter.clear()


@contextmanager
def accelerated(*, triton: bool = True) -> Iterator[None]:
    """Inside, the engine takes the processor's tensors for an accelerator's, with Triton or not."""
    from gradsurgery.kernels import network
    from gradsurgery.rules import base

    with (
        mock.patch.object(network, "DEVICES", {"cpu"} if triton else set()),
        mock.patch.object(network, "ONE_BY_ONE", set()),
        mock.patch.object(base, "PIECE_PER_THREAD", 1 << 40),  # there are none elsewhere
    ):
        yield


@contextmanager
def recorded(*, run: bool = True) -> Iterator[Recording]:
    """Inside, everything that this thread asks of torch, and of our kernels, is counted.

    run: False counts our kernels without starting them: an interpreter would be busy with a large
        network for minutes. What they would have written stays as it is.
    """
    recording = Recording()
    mode = _Dispatched(recording)
    with ExitStack() as stack:
        for name in _FACTORIES:
            stack.enter_context(_replaced(torch, name, mode.factory))
        stack.enter_context(_replaced(torch, "tensor", mode.tensor))
        for name in ("cpu", "numpy", "tolist"):
            stack.enter_context(_replaced(Tensor, name, mode.read))
        stack.enter_context(_replaced(Tensor, "to", mode.to))
        stack.enter_context(_replaced(Tensor, "pin_memory", mode.pin_memory))
        for module in _starting_kernels():
            stack.enter_context(
                _replaced(module, "launch", mode.own_kernel if run else mode.left_out)
            )
        stack.enter_context(mode)
        yield recording


def second_step(step: Callable[[], object], *, run: bool = False) -> Recording:
    """What the second step asks for: the first makes what later ones keep."""
    with recorded(run=run) as recording:
        step()
        recording.clear()
        step()
    return recording


def _starting_kernels() -> list[Any]:
    """The modules that know the one function which starts our kernels."""
    from gradsurgery import kernels

    modules = []
    for file in Path(str(kernels.__file__)).parent.glob("*.py"):
        with suppress(ImportError):  # Triton is not installed everywhere
            modules.append(import_module(f"{kernels.__name__}.{file.stem}"))
    return [module for module in modules if hasattr(module, "launch")]


def _replaced(owner: Any, name: str, wrapper: Callable[..., Any]) -> Any:
    original = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    return mock.patch.object(owner, name, call)


class _Dispatched(TorchDispatchMode):
    """Sees every operation below autograd, also those of backward passes on this thread."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording
        self._paused = False
        # By the address of the storage, which is kept: another would get the address otherwise.
        self._host: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self._paused:
            self._note(func, args, kwargs or {}, result)
        return result

    def _note(self, func: Any, args: tuple[Any, ...], kwargs: Any, result: Any) -> None:
        name = func._schema.name.removeprefix("aten::")
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if given and all(map(self.on_host, given)):
            self._mark(result)
        elif name == "_local_scalar_dense":
            self._read_back("item")
        elif name == "copy_" and self.on_host(args[0]) != self.on_host(args[1]):
            if self.on_host(args[1]):
                waits = not (kwargs.get("non_blocking") or args[2:3] == (True,))
                self._copied_there(name, waits=waits)
            else:
                self._read_back(name)
        elif func.namespace != "profiler" and not func.is_view and name not in _NO_KERNEL:
            self._recording.launches[name] += _launches(name, args)
            masks = name in ("index", "index_put_") and any(
                index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
            )
            if masks or name in _SIZED_BY_VALUES:
                self._read_back(name)

    def _read_back(self, name: str) -> None:
        self._recording.synchronisations[name] += 1
        self._recording.copies[name] += 1

    def _copied_there(self, name: str, *, waits: bool) -> None:
        self._recording.copies[name] += 1
        if waits:
            self._recording.synchronisations[name] += 1

    def on_host(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._host

    def _mark(self, result: Any) -> Any:
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                self._host[storage._cdata] = storage
        return result

    @contextmanager
    def _pause(self) -> Iterator[None]:
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def factory(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A tensor that Python makes lies where it says, by default on the host."""
        if kwargs.get("device") not in (None, "cpu"):
            return original(*args, **kwargs)
        with self._pause():
            return self._mark(original(*args, **kwargs))

    def tensor(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Of Python's numbers, which have to be copied to a device."""
        if kwargs.get("device") not in (None, "cpu") and not self._paused:
            self._copied_there("tensor", waits=True)
            with self._pause():
                return original(*args, **kwargs)
        return self.factory(original, *args, **kwargs)

    def read(self, original: Callable[..., Any], tensor: Tensor, *args: Any, **kw: Any) -> Any:
        """`.cpu()`, `.tolist()` and `.numpy()`: of a device's tensor a copy on the host."""
        if self._paused or self.on_host(tensor):
            return original(tensor, *args, **kw)
        self._read_back(original.__name__)
        with self._pause():
            return self._mark(original(tensor.clone(), *args, **kw))

    def to(self, original: Callable[..., Any], tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        """`.to("cpu")` reads a device's tensor; any other device takes a host's tensor there."""
        place = kwargs.get("device", args[0] if args else None)
        if isinstance(place, Tensor):
            place = None if self.on_host(place) else place.device
        if not isinstance(place, str | torch.device) or self._paused:
            return original(tensor, *args, **kwargs)
        if place == "cpu":
            return self.read(original, tensor, *args, **kwargs)
        if not self.on_host(tensor):
            return original(tensor, *args, **kwargs)
        self._copied_there("to", waits=not kwargs.get("non_blocking"))
        with self._pause():
            return original(tensor, *args, **kwargs).clone()

    def pin_memory(self, _: Callable[..., Any], tensor: Tensor) -> Tensor:
        """Pinned memory is the host's."""
        return tensor

    def own_kernel(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A kernel of one's own; what an interpreter does in it is none of torch's launches."""
        self.left_out(original, *args, **kwargs)
        with self._pause():
            return original(*args, **kwargs)

    def left_out(self, _: Callable[..., Any], *args: Any, **__: Any) -> None:
        """The same, counted only; a table made on the host has to be copied for it."""
        kernel, *given = args
        self._recording.launches[getattr(kernel, "__name__", str(kernel))] += 1
        tables = [tensor for tensor in given if isinstance(tensor, Tensor) and self.on_host(tensor)]
        if tables:
            self._recording.copies["of a table"] += len(tables)
        for tensor in given:  # products that are not computed may be anything, and weights follow
            if isinstance(tensor, Tensor) and tensor.ndim == 3:
                ctypes.memset(tensor.data_ptr(), 0, tensor.nbytes)


def _launches(name: str, args: tuple[Any, ...]) -> int:
    """One, or what torch's kernels for many tensors need for so many of these sizes."""
    if name in ("cat", "stack"):
        return max(math.ceil(sum(tensor.numel() > 0 for tensor in args[0]) / _MOST_JOINED), 1)
    lists = [arg for arg in args if isinstance(arg, list | tuple) and arg and _all_tensors(arg)]
    if not name.startswith(("_foreach_", "_fused_", "_amp_foreach_")) or not lists:
        return 1
    depth = len(lists) + (name.startswith("_foreach_") and not name.endswith("_"))
    blocks = sum(math.ceil(tensor.numel() / _BLOCK) for tensor in lists[0])
    most = _MOST_TENSORS[min(depth, len(_MOST_TENSORS)) - 1]
    return max(math.ceil(len(lists[0]) / most), math.ceil(blocks / _MOST_BLOCKS))


def _all_tensors(values: Any) -> bool:
    return all(isinstance(value, Tensor) for value in values)
