"""Component-wise rules over a whole network in one kernel, which `combine_programs.py` has.

The kernel goes once over the gradients of a few domains. What it has after them is either stored,
for the domains that follow, or becomes the update. On the way it counts, tensor by tensor, what
agrees and what is zero in every domain, and notes where a gradient was not finite; the update is
NaN there. A mean that the precision holds is right where its sum is beyond it, up to four domains;
of more the running total is stored, and one that ends beyond the precision is noted as not finite.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradsurgery.kernels.combine_programs import TILE, TYPES, WARPS, combine_program, noise_program
from gradsurgery.kernels.network import (
    BLOCK,
    COUNTING,
    Combination,
    Layout,
    Rows,
    Seen,
    kept,
    launch,
    layout_of,
    table_of,
)

# Which rules keep more of the domains before than a total.
_SECOND = ("sand-mask", "graddrop")
_SIGNED = ("and-mask", "sand-mask")


class Running(NamedTuple):
    """What is known after some domains, one value per component of the network."""

    total: Tensor
    second: Tensor | None
    signs: Tensor | None
    found: Tensor


def combine(
    combination: Combination,
    rows: Rows,
    *,
    like: Tensor,
    sizes: tuple[int, ...],
    out: list[Tensor | None] | None,
    domains: int,
    before: Running | None = None,
    random: Any = None,
) -> Seen:
    """Take the flat gradients `rows` [domains][tensors] into the rule.

    like: a tensor of the gradients' precision on their device.
    sizes: the number of components of each tensor.
    out: where the update goes, one tensor for each that a domain reaches, which may be one of its
        gradients; None where more domains follow. The update is NaN where a gradient is.
    domains: how many there are with these.
    before: what was known after the domains before these.
    random: the rule's source of draws.
    """
    device, wide, layout = like.device, _wide(like.dtype), layout_of(sizes, like.device)
    tensors, blocks = len(sizes), layout.owners.shape[0]
    marks = torch.zeros((len(rows) + 2) * tensors + 1, dtype=torch.int32, device=device)
    found = marks[-1].view(torch.float32)
    after = before if before or out else _fresh(combination.kind, sum(sizes), wide, found)
    total, second, signs = (found if t is None else t for t in (after or (None,) * 3)[:3])
    seed = random.seed_on(device) if out is not None and combination.draws else None
    sums = out is not None and (combination.rescale or combination.kind == "agr-rand")
    partials = torch.empty(blocks * sums, dtype=torch.float64, device=device)
    table = table_of(rows if out is None else [*rows, out], device)
    launch(
        combine_program,
        (blocks,),
        table.addresses,
        *layout,
        marks,
        found,
        found if before is None else before.found,
        total,
        second,
        signs,
        partials,
        constants_of(combination.constants, device),
        found if seed is None else seed,
        tensors,
        domains,
        RULE=combination.kind,
        ROWS=len(rows),
        RESUMED=before is not None,
        FINAL=out is not None,
        DIVIDES=combination.constants[0] != 1,
        COUNTS=out is not None and combination.kind in COUNTING,
        SUMS=sums,
        ALIGNED=table.aligned,
        DTYPE=TYPES[like.dtype],
        WIDE=TYPES[wide],
        BLOCK=BLOCK,
        TILE=TILE,
        num_warps=WARPS,
    )
    flags, counts = marks[:-1].view(-1, tensors).tensor_split((-2,))
    found = found if before is None else torch.maximum(found, before.found)
    if out is None:
        return Seen(flags, running=Running(total, second, signs, found))
    if combination.kind == "agr-rand" and seed is not None:
        _replace_marks(combination, out, layout, partials, counts, found=found, seed=seed)
    elif combination.rescale:
        _rescale(out, partials, sizes, found=found)
    return Seen(flags, found, *(counts if combination.kind in COUNTING else ()))


def _replace_marks(
    combination: Combination,
    tensors: list[Tensor | None],
    layout: Layout,
    partials: Tensor,
    counts: Tensor,
    *,
    found: Tensor,
    seed: Tensor,
) -> None:
    """Put draws from N(0, σ²), divided, where `tensors` are NaN; all NaN where a gradient was.

    partials: Σ_n |g*_n| over the components that agree, of which σ is the mean, block by block. The
    draw for a component depends on the seed and the component's number in the network alone.
    """
    reached = [tensor for tensor in tensors if tensor is not None]
    some = reached[0]
    table = table_of([tensors], some.device)
    launch(
        noise_program,
        (len(layout.owners),),
        table.addresses,
        *layout,
        partials.sum(),
        counts.sum(1),
        sum(map(torch.numel, reached)),
        constants_of(combination.constants, some.device),
        seed,
        found,
        ALIGNED=table.aligned,
        DTYPE=TYPES[some.dtype],
        WIDE=TYPES[_wide(some.dtype)],
        BLOCK=BLOCK,
        TILE=TILE,
        num_warps=WARPS,
    )


def _rescale(
    tensors: Sequence[Tensor | None], masks: Tensor, sizes: tuple[int, ...], *, found: Tensor
) -> None:
    """Divide each tensor by the mean of its mask, whose sums over the blocks are `masks`.

    found: becomes 1.0 where that ends beyond the precision.
    """
    # on the processor the sums have one order
    sums = masks.cpu().split([-(-size // BLOCK) for size in sizes])
    rescaled = []
    for tensor, part, size in zip(tensors, sums, sizes, strict=True):
        if tensor is not None and size:
            rescaled.append(tensor.div_(part.sum().item() / size or 1.0))
    if rescaled:
        largest = torch.stack(torch._foreach_norm(rescaled, ord=torch.inf))
        found.copy_(torch.maximum(found, largest.isfinite().all().logical_not().to(found)))


@kept(64)
def constants_of(values: tuple[float, ...], device: torch.device) -> Tensor:
    """The numbers of a rule on the device, at least one: a kernel's own arguments are float32."""
    return torch.tensor([*values, 0.0], dtype=torch.float64, device=device)


def _fresh(kind: str, size: int, wide: torch.dtype, found: Tensor) -> Running:
    total = found.new_empty(size, dtype=wide)
    second = torch.empty_like(total) if kind in _SECOND else None
    signs = found.new_empty(size, dtype=torch.int32) if kind in _SIGNED else None
    return Running(total, second, signs, found)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The precision of the sums."""
    return torch.float64 if dtype == torch.float64 else torch.float32
