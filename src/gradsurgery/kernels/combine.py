"""Component-wise rules over a whole network in one kernel, which `combine_programs.py` has.

The kernel goes once over the gradients of a few domains. What it has after them is either stored,
for the domains that follow, or becomes the update. On the way it counts, tensor by tensor, what
agrees and what is zero in every domain, and notes where a gradient was not finite; the update is
NaN there. A mean that the precision holds is right where its sum is beyond it, up to four domains;
of more the running total is stored, and one that ends beyond the precision is noted as not finite.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gradsurgery.kernels.combine_programs import TILE, TYPES, WARPS, combine_program, noise_program
from gradsurgery.kernels.network import (
    BLOCK,
    ROWS,
    Combination,
    Layout,
    Rows,
    launch,
    layout_of,
    table_of,
)

# Which rules keep more of the domains before than a total.
_SECOND = ("sand-mask", "graddrop")
_SIGNED = ("and-mask", "sand-mask")
COUNTING = ("agr-sum", "agr-rand", *_SIGNED)
"""The rules whose agreeing components are counted."""


class Running(NamedTuple):
    """What is known after some domains, one value per component of the network."""

    total: Tensor
    second: Tensor | None
    signs: Tensor | None
    found: Tensor


class Seen(NamedTuple):
    """What the kernel saw of some domains' gradients.

    flags: [domains, tensors], not 0 where a gradient was not finite.
    found: 1.0 where any of them is set, or was by the domains before; float32, without dimensions.
    agreeing: [tensors], how many components agree and are not zero in every domain.
    zeros: [tensors], how many are zero in every domain.
    running: what is known so far, where more domains follow.
    """

    flags: Tensor
    found: Tensor
    agreeing: Tensor
    zeros: Tensor
    running: Running | None = None


def combine(
    combination: Combination,
    rows: Rows,
    *,
    like: Tensor,
    sizes: tuple[int, ...],
    out: Sequence[Tensor | None] | None,
    domains: int,
    before: Running | None = None,
    seed: Tensor | None = None,
) -> Seen:
    """Take the flat gradients `rows` [domains][tensors] into the rule.

    like: a tensor of the gradients' precision on their device.
    sizes: the number of components of each tensor.
    out: where the update goes, one tensor for each that a domain reaches, which may be one of its
        gradients; None where more domains follow. The update is NaN where a gradient is.
    domains: how many there are with these.
    before: what was known after the domains before these.
    seed: of the draws, an int64 on the device.
    """
    device, dtype, tensors = like.device, like.dtype, len(sizes)
    layout = layout_of(sizes, device)
    marks = torch.zeros((len(rows) + 2) * tensors + 1, dtype=torch.int32, device=device)
    found = marks[-1].view(torch.float32)
    fresh = before is None and out is None
    after = _fresh(combination.kind, sum(sizes), _wide(dtype), found) if fresh else before
    total, second, signs = (found if t is None else t for t in (after or (None,) * 3)[:3])
    sums = out is not None and (combination.rescale or combination.kind == "agr-rand")
    partials = torch.empty(len(layout.owners) * sums, dtype=torch.float64, device=device)
    table = table_of(rows if out is None else [*rows, out], device)
    launch(
        combine_program,
        (len(layout.owners),),
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
        COUNTS=out is not None and combination.kind in COUNTING,
        SUMS=sums,
        ALIGNED=table.aligned,
        DTYPE=TYPES[dtype],
        WIDE=TYPES[_wide(dtype)],
        BLOCK=BLOCK,
        TILE=TILE,
        num_warps=WARPS,
    )
    by_tensor = marks[:-1].view(-1, tensors)
    found = found if before is None else torch.maximum(found, before.found)
    seen = Seen(by_tensor[:-2], found, by_tensor[-2], by_tensor[-1])
    if out is None and after is not None:
        return seen._replace(running=Running(*after[:3], found))
    if out is not None and combination.kind == "agr-rand" and seed is not None:
        _replace_marks(combination, out, layout, partials, seen=seen, seed=seed)
    elif out is not None and combination.rescale:
        _rescale(out, partials, sizes)
    return seen


def combined(
    combination: Combination, gradients: Float[Tensor, "domains params"], seed: Tensor | None
) -> tuple[Float[Tensor, " params"], Seen]:
    """The update for stored gradients, whose rows have no gaps."""
    update = torch.empty_like(gradients[0])
    rows = [[row] for row in gradients]
    running, flags, taken = None, [], 0
    while taken < len(rows):
        part = rows[taken : taken + ROWS]
        taken += len(part)
        last = taken == len(rows)
        seen = combine(
            combination,
            part,
            like=update,
            sizes=(len(update),),
            out=[update] if last else None,
            domains=taken,
            before=running,
            seed=seed,
        )
        running = seen.running
        flags.append(seen.flags)
    return update, seen._replace(flags=torch.cat(flags))


def _replace_marks(
    combination: Combination,
    tensors: Sequence[Tensor | None],
    layout: Layout,
    partials: Tensor,
    *,
    seen: Seen,
    seed: Tensor,
) -> None:
    """Put draws from N(0, σ²), divided, where `tensors` are NaN; all NaN where a gradient was.

    partials: Σ_n |g*_n| over the components that agree, of which σ is the mean, block by block. The
    draw for a component depends on the seed and the component's number in the network alone.
    """
    some = next(tensor for tensor in tensors if tensor is not None)
    table = table_of([tensors], some.device)
    launch(
        noise_program,
        (len(layout.owners),),
        table.addresses,
        *layout,
        partials.sum(),
        torch.stack([seen.agreeing, seen.zeros]).sum(1),
        constants_of(combination.constants, some.device),
        seed,
        seen.found,
        ALIGNED=table.aligned,
        DTYPE=TYPES[some.dtype],
        WIDE=TYPES[_wide(some.dtype)],
        BLOCK=BLOCK,
        num_warps=WARPS,
    )


def _rescale(tensors: Sequence[Tensor | None], masks: Tensor, sizes: tuple[int, ...]) -> None:
    """Divide each tensor by the mean of its mask, whose sums over the blocks are `masks`."""
    # on the processor the sums have one order
    sums = masks.cpu().split([-(-size // BLOCK) for size in sizes])
    for tensor, part, size in zip(tensors, sums, sizes, strict=True):
        if tensor is not None:
            tensor.div_(part.sum().item() / max(size, 1) or 1.0)


@lru_cache(maxsize=64)
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
