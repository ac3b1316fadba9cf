"""What works through the tensors of a whole network at once, and the tables that Triton's need.

One of Triton's kernels is started once for all tensors. What it gets is a table of addresses, one
row a domain and one column a tensor, and a list of blocks: of which tensor each is, and where in it
it begins.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, lru_cache, wraps
from importlib.util import find_spec
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradsurgery.errors import ArgumentError

P = ParamSpec("P")
Made = TypeVar("Made")

BLOCK = 4096
"""Components that one program of a kernel works on."""

ROWS = 8
"""Domains that the kernel for component-wise rules takes at a time, at most."""

DEVICES = {"cuda"}
"""The kinds of devices that kernels are started on; Triton's interpreter makes one of the CPU."""

ONE_BY_ONE = {"cpu"}
"""The kinds of devices on which tensors are taken one after the other, by compiled loops."""

_DOUBLE = {"cpu", "cuda"}

_WIDEST = (1 << 31) - BLOCK  # offsets to the end of a tensor's last block are 32-bit numbers


def accelerates(tensors: Sequence[Tensor]) -> bool:
    """Whether there are kernels for these tensors: on one CUDA device, where Triton is at hand."""
    device = tensors[0].device
    if device.type not in DEVICES or not has_triton():
        return False
    return all(tensor.device == device and tensor.numel() < _WIDEST for tensor in tensors)


@cache
def has_triton() -> bool:
    """Whether Triton is installed; torch's builds for CUDA on Linux bring it."""
    return find_spec("triton") is not None


def wide_on(device: torch.device) -> torch.dtype:
    """The precision of sums over a network: float64 where the device is known to have it."""
    return torch.float64 if device.type in _DOUBLE else torch.float32


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device, which is not waited for.

    A graph that is being recorded would read the host's memory again: torch refuses that.
    """
    if tensor.device.type != "cpu" or device.type not in ("cpu", "cuda"):
        return tensor.to(device)
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            return tensor.to(device)
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


Rows = Sequence[list[Tensor | None]]
"""Flat gradients [domains][tensors], None where a domain does not reach a tensor."""

COUNTING = ("agr-sum", "agr-rand", "and-mask", "sand-mask")
"""The rules whose agreeing components are counted."""


class Combination(NamedTuple):
    """What the kernel for component-wise rules needs to know of one.

    kind: the rule's name.
    constants: the number the update is divided by, then the rule's own.
    draws: whether it draws at random.
    rescale: whether each tensor's update is divided by the mean of its mask.
    """

    kind: str
    constants: tuple[float, ...] = (1.0,)
    draws: bool = False
    rescale: bool = False


class Seen(NamedTuple):
    """What was seen of some domains' gradients.

    flags: [domains, tensors], where a gradient was not finite: whole numbers that are not 0, or
        numbers that are not finite.
    found: 1.0 where any of them is set, or was by the domains before, or where the update is not
        finite; float32, without dimensions. None where more domains follow.
    agreeing: [tensors], how many components agree and are not zero in every domain.
    moving: [tensors], how many are not zero in every domain.
    owners: of which tensor each column of these is; None where there is one a tensor.
    running: what is known so far, where more domains follow.
    """

    flags: Tensor
    found: Tensor | None = None
    agreeing: Tensor | None = None
    moving: Tensor | None = None
    owners: Tensor | None = None
    running: Any = None


class Kernels(NamedTuple):
    """What works through a whole network at once: of `combine.py` and `products.py`, or `flat.py`.

    `rows` are used up by these functions. `out` has a tensor for each that a domain reaches, which
    may be one of its gradients, and has the update afterwards.
    """

    combine: Callable[..., Seen]
    weigh: Callable[..., tuple[Tensor, Seen]]
    gather: Callable[..., Tensor]
    projections: Callable[..., Tensor]


def kernels_for(tensors: Sequence[Tensor]) -> Kernels | None:
    """What works through all of these tensors of one device at once; None on the processor."""
    if tensors[0].device.type in ONE_BY_ONE - DEVICES:
        return None
    dtype = tensors[0].dtype
    alike = all(tensor.dtype == dtype for tensor in tensors)
    return _kernels(compiled=alike and accelerates(tensors), double=dtype == torch.float64)


@cache
def _kernels(*, compiled: bool, double: bool) -> Kernels:
    from gradsurgery.kernels import flat

    kernels = Kernels(flat.combine, flat.weigh, flat.gather, flat.projections)
    if not compiled:
        return kernels
    from gradsurgery.kernels import combine, products

    # the squares of float64 have to be scaled first
    weigh = kernels.weigh if double else products.weigh
    return Kernels(combine.combine, weigh, products.gather, products.projections)


def combined(
    kernels: Kernels,
    combination: Combination,
    gradients: Float[Tensor, "domains params"],
    random: Any,
) -> tuple[Float[Tensor, " params"], Seen]:
    """The update of a component-wise rule for stored gradients, whose rows have no gaps."""
    out: list[Tensor | None] = [torch.empty_like(gradients[0])]
    rows: list[list[Tensor | None]] = [[row] for row in gradients.unbind()]
    running, flags, taken = None, [], 0
    while taken < len(rows):
        part = rows[taken : taken + ROWS]
        taken += len(part)
        seen = kernels.combine(
            combination,
            part,
            like=gradients,
            sizes=gradients.shape[1:],
            out=out if taken == len(rows) else None,
            domains=taken,
            before=running,
            random=random,
        )
        running = seen.running
        flags.append(seen.flags)
    (update,) = out
    assert update is not None
    return update, seen if len(flags) == 1 else seen._replace(flags=torch.cat(flags))


class _Staging(threading.local):
    """Memory that tables are copied to the device from, while this thread records a graph.

    read: what the graph reads beside them.
    """

    memory: Tensor | None = None
    used = 0
    read: list[Any]


_staging = _Staging()


def kept(most: int) -> Callable[[Callable[P, Made]], Callable[P, Made]]:
    """As `lru_cache` of so many; a graph that is recorded keeps what it gets for itself too."""

    def keeping(make: Callable[P, Made]) -> Callable[P, Made]:
        made: Any = lru_cache(most)(make)

        @wraps(make)
        def get(*arguments: P.args, **named: P.kwargs) -> Made:
            found: Made = made(*arguments, **named)
            if _staging.memory is not None:
                _staging.read.append(found)
            return found

        return get

    return keeping


class Layout(NamedTuple):
    """Where every block of the network's tensors lies; all on the device.

    sizes: components of each tensor.
    bases: components of the tensors before it, which number the components of the whole network.
    owners: the tensor of each block.
    begins: where in its tensor each block begins.
    """

    sizes: Int[Tensor, " tensors"]
    bases: Int[Tensor, " tensors"]
    owners: Int[Tensor, " blocks"]
    begins: Int[Tensor, " blocks"]


@kept(32)
def layout_of(sizes: tuple[int, ...], device: torch.device) -> Layout:
    """The layout of tensors with so many components; kept, since a network's is always the same."""
    counts = torch.tensor(sizes, dtype=torch.int64, device="cpu")
    blocks = (counts + BLOCK - 1) // BLOCK
    owners = torch.repeat_interleave(torch.arange(len(sizes), device="cpu"), blocks)
    first = blocks.cumsum(0) - blocks
    begins = (torch.arange(len(owners), device="cpu") - first[owners]) * BLOCK
    return Layout(
        counts.int().to(device),
        (counts.cumsum(0) - counts).to(device),
        owners.int().to(device),
        begins.int().to(device),
    )


_TABLES = 1 << 18  # addresses that fit into the memory set aside for the tables of a graph


@contextmanager
def staged_tables(device: torch.device) -> Iterator[list[Any]]:
    """Inside, the addresses of tables are kept in one memory, which a graph that is recorded copies

    them from at every replay. Gives what the graph reads and does not hold itself, that memory and
    what is `kept` for every step; it has to stay as long as the graph.
    """
    on_cuda = device.type == "cuda"
    pinned = torch.empty(_TABLES, dtype=torch.int64, device="cpu", pin_memory=on_cuda)
    _staging.memory, _staging.used, _staging.read = pinned, 0, [pinned]
    try:
        yield _staging.read
    finally:
        _staging.memory, _staging.read = None, []


class Table(NamedTuple):
    """The addresses of tensors on the device: int64 [rows · tensors], 0 where there is none.

    aligned: whether all are multiples of 16 bytes, so that memory is read 16 bytes a time.
    """

    addresses: Tensor
    aligned: bool


def table_of(rows: Rows, device: torch.device) -> Table:
    """The table of the tensors."""
    addresses = tuple(0 if tensor is None else tensor.data_ptr() for row in rows for tensor in row)
    if device.type == "cpu":
        return _kept_table(addresses, device, 0)
    if _staging.memory is None:
        if torch.cuda.is_current_stream_capturing():
            raise ArgumentError(
                "a CUDA graph that is being recorded would keep addresses in memory that goes; "
                "record it inside gradsurgery.kernels.network.staged_tables(device), and keep what "
                "that gives as long as the graph"
            )
        stream = torch.cuda.current_stream(device).cuda_stream
        return _kept_table(addresses, device, stream)
    place = _staging.memory[_staging.used : _staging.used + len(addresses)]
    _staging.used += len(addresses)
    # what does not fit in there raises
    place.copy_(torch.tensor(addresses, dtype=torch.int64, device="cpu"))
    return Table(place.to(device, non_blocking=True), _are_aligned(addresses))


@lru_cache(maxsize=64)
def _kept_table(addresses: tuple[int, ...], device: torch.device, stream: int) -> Table:
    """The table, copied on the current stream, which is `stream`.

    A training loop's gradients lie at the same few places again and again.
    """
    table = sent(torch.tensor(addresses, dtype=torch.int64, device="cpu"), device)
    return Table(table, _are_aligned(addresses))


def _are_aligned(addresses: tuple[int, ...]) -> bool:
    return all(address % 16 == 0 for address in addresses)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Start as many programs of a kernel; the one place where kernels are started.

    On the device of the first argument, whichever is the current one.
    """
    if not all(grid):
        return
    device = arguments[0].device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*arguments, **constants)
