"""Component-wise rules over a whole network in one kernel, written in Triton.

The kernel goes once over the gradients of a few domains. What it has after them is either stored,
for the domains that follow, or becomes the update. On the way it counts, tensor by tensor, what
agrees and what is zero in every domain, and notes where a gradient was not finite; the update is
NaN there.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from gradsurgery.kernels.network import (
    BLOCK,
    ROWS,
    Combination,
    Layout,
    Rows,
    address_table,
    are_aligned,
    launch,
    layout_of,
)

TYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}
WARPS = 8

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
    all_rows = [*rows, out] if out is not None else rows
    device, dtype, tensors = like.device, like.dtype, len(sizes)
    layout = layout_of(sizes, device)
    blocks = len(layout.owners)
    marks = torch.zeros((len(rows) + 2) * tensors + 1, dtype=torch.int32, device=device)
    found = marks[-1].view(torch.float32)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    after = before
    if after is None and out is None:
        after = _fresh(combination.kind, sum(sizes), wide, found)
    total, second, signs = (found if t is None else t for t in (after or (None,) * 3)[:3])
    sums = out is not None and (combination.rescale or combination.kind == "agr-rand")
    partials = torch.empty(blocks if sums else 0, dtype=torch.float64, device=device)
    launch(
        _combine,
        blocks,
        address_table(all_rows, device),
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
        SUMS=sums,
        ALIGNED=are_aligned(all_rows),
        DTYPE=TYPES[dtype],
        WIDE=TYPES[wide],
        BLOCK=BLOCK,
        num_warps=WARPS,
    )
    flags = marks[: len(rows) * tensors].view(-1, tensors)
    agreeing, zeros = marks[len(rows) * tensors : -1].view(2, tensors)
    if before is not None:
        found = torch.maximum(found, before.found)
    running = None if after is None or out is not None else Running(*after[:3], found)
    seen = Seen(flags, found, agreeing, zeros, running)
    if out is not None and combination.kind == "agr-rand" and seed is not None:
        _replace_marks(out, layout, partials.sum(), seen, combination.constants, seed)
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
    tensors: Sequence[Tensor | None],
    layout: Layout,
    sizes: Float[Tensor, ""],
    seen: Seen,
    constants: tuple[float, ...],
    seed: Tensor,
) -> None:
    """Put draws from N(0, σ²), divided, where `tensors` are NaN; all NaN where a gradient was.

    sizes: Σ_n |g*_n| over the components that agree, of which σ is the mean. The draw for a
    component depends on the seed and the component's number in the network alone.
    """
    some = next(tensor for tensor in tensors if tensor is not None)
    launch(
        _replace,
        len(layout.owners),
        address_table([tensors], some.device),
        *layout,
        sizes,
        torch.stack([seen.agreeing, seen.zeros]).sum(1),
        constants_of(constants, some.device),
        seed,
        seen.found,
        ALIGNED=are_aligned([tensors]),
        DTYPE=TYPES[some.dtype],
        WIDE=tl.float64 if some.dtype == torch.float64 else tl.float32,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )


def _rescale(tensors: Sequence[Tensor | None], masks: Tensor, sizes: tuple[int, ...]) -> None:
    """Divide each tensor by the mean of its mask, whose sums over the blocks are `masks`."""
    # on the processor the sums have one order
    sums = masks.cpu().split([-(-size // BLOCK) for size in sizes])
    for tensor, part, size in zip(tensors, sums, sizes, strict=True):
        if tensor is not None:
            tensor.div_(max(part.sum().item() / max(size, 1), 1e-10))


@lru_cache(maxsize=64)
def constants_of(values: tuple[float, ...], device: torch.device) -> Tensor:
    """The numbers of a rule on the device, at least one: a kernel's own arguments are float32."""
    return torch.tensor([*values, 0.0], dtype=torch.float64, device=device)


def _fresh(kind: str, size: int, wide: torch.dtype, found: Tensor) -> Running:
    total = found.new_empty(size, dtype=wide)
    second = torch.empty_like(total) if kind in _SECOND else None
    signs = found.new_empty(size, dtype=torch.int32) if kind in _SIGNED else None
    return Running(total, second, signs, found)


@triton.jit
@no_type_check
def pointers_at(table, index, offsets, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The places of a tensor's components, and whether there is a tensor."""
    address = tl.load(table + index)
    places = address.to(tl.pointer_type(TYPE)) + offsets
    if ALIGNED:  # read and written 16 bytes a time
        places = tl.max_contiguous(tl.multiple_of(places, 16), 4096)
    return places, address != 0


@triton.jit
@no_type_check
def _combine_block(
    table, tensor, tensors, offsets, inside, base, found, marks, found_before, total, second,
    signs, partials, constants, seed, domains, RULE: tl.constexpr, ROWS: tl.constexpr,
    RESUMED: tl.constexpr, FINAL: tl.constexpr, SUMS: tl.constexpr, ALIGNED: tl.constexpr,
    DTYPE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    SIGNED: tl.constexpr = (RULE == "and-mask") or (RULE == "sand-mask")
    AGREEING: tl.constexpr = (RULE == "agr-sum") or (RULE == "agr-rand")
    SECOND: tl.constexpr = (RULE == "sand-mask") or (RULE == "graddrop")
    numbers = base + offsets
    a = tl.zeros([BLOCK], dtype=WIDE)
    b = tl.zeros([BLOCK], dtype=WIDE)
    c = tl.zeros([BLOCK], dtype=tl.int32)
    bad = tl.zeros([BLOCK], dtype=tl.int32)
    same = bad == 0
    if RESUMED:
        a = tl.load(total + numbers, mask=inside, other=0.0)
        if AGREEING:
            same = a == a
            a = tl.where(same, a, 0.0)
        if SECOND:
            b = tl.load(second + numbers, mask=inside, other=0.0)
        if SIGNED:
            c = tl.load(signs + numbers, mask=inside, other=0)
    for row in tl.static_range(ROWS):
        places, there = pointers_at(table, row * tensors + tensor, offsets, DTYPE, ALIGNED)
        g = tl.load(places, mask=inside & there, other=0.0).to(WIDE)
        bad = bad | tl.where(tl.abs(g) < float("inf"), 0, 1 << row)
        if SIGNED:
            sign = (g > 0).to(tl.int32) - (g < 0).to(tl.int32)
            c = (c + 2 * sign) | (sign & 1)
        if AGREEING:
            if row > 0 or RESUMED:
                same = same & ((g > 0) == (a > 0)) & ((g < 0) == (a < 0))
            a = a + g
        elif RULE == "sand-mask":  # Welford's update
            change = g - a
            a = a + change / (domains - ROWS + row + 1).to(WIDE)
            b = b + change * (g - a)
        elif RULE == "graddrop":
            a = a + tl.maximum(g, 0.0)
            b = b + tl.minimum(g, 0.0)
        else:
            a = a + g
    if tl.max(bad, 0) != 0:
        for row in tl.static_range(ROWS):
            if tl.max((bad >> row) & 1, 0) != 0:
                tl.store(marks + row * tensors + tensor, 1)
        tl.store(found, 1.0)
    if not FINAL:
        if AGREEING:
            a = tl.where(same, a, float("nan"))
        tl.store(total + numbers, a, mask=inside)
        if SECOND:
            tl.store(second + numbers, b, mask=inside)
        if SIGNED:
            tl.store(signs + numbers, c, mask=inside)
    else:
        divisor = tl.load(constants).to(WIDE)
        zero = inside
        agrees = inside
        if RULE == "agr-sum":
            zero = same & (a == 0)
            agrees = same & (a != 0)
            update = tl.where(same, a, 0.0) / divisor
        elif RULE == "agr-rand":
            zero = same & (a == 0)
            agrees = same & (a != 0)
            kept = same & (tl.abs(a) + tl.load(constants + 1).to(WIDE) > 0)
            summed = tl.where(kept, tl.abs(a), 0.0).to(tl.float64)
            update = tl.where(kept, a / divisor, float("nan"))
        elif RULE == "and-mask":
            zero = c == 0
            kept = tl.abs(c >> 1).to(tl.float64) >= tl.load(constants + 1)
            agrees = kept & (c != 0)
            summed = tl.where(kept, 1.0, 0.0).to(tl.float64)
            update = tl.where(kept, a, 0.0) / divisor
        elif RULE == "sand-mask":
            zero = c == 0
            margin = tl.abs(c >> 1).to(tl.float64) / domains - tl.load(constants + 1)
            ratio = margin * tl.load(constants + 2) / (b.to(tl.float64) / (domains - 1))
            # 0 / 0, no spread and exactly at the threshold, is NaN and gives 0
            ratio = tl.where(ratio > 0, ratio, 0.0)
            power = tl.exp(-2 * ratio)
            summed = (1 - power) / (1 + power)  # tanh
            agrees = summed > 0
            update = a * summed.to(WIDE) / divisor
        elif RULE == "graddrop":
            leak = tl.load(constants + 1).to(WIDE)
            draws = _uniform(tl.load(seed), numbers)
            chosen = tl.where(a / (a - b) > draws, a, b)  # NaN where both are 0
            update = leak * (a + b) + (1 - leak) * chosen
        else:
            update = a / divisor
        if SUMS:
            tl.store(partials + tl.program_id(0), tl.sum(tl.where(inside, summed, 0.0), 0))
        update = tl.where(bad != 0, float("nan"), update)
        if RESUMED:
            update = tl.where(tl.load(found_before) > 0, float("nan"), update)
        places, there = pointers_at(table, ROWS * tensors + tensor, offsets, DTYPE, ALIGNED)
        tl.store(places, update.to(DTYPE), mask=inside & there)
        if AGREEING or SIGNED:
            counted = inside & there  # what no domain reaches has no update and is not counted
            both = (agrees & counted).to(tl.int32) + ((zero & counted).to(tl.int32) << 16)
            both = tl.sum(both, 0)
            tl.atomic_add(marks + ROWS * tensors + tensor, both & 0xFFFF)
            tl.atomic_add(marks + (ROWS + 1) * tensors + tensor, both >> 16)


@triton.jit
@no_type_check
def _combine(
    table, sizes, bases, owners, begins, marks, found, found_before, total, second, signs,
    partials, constants, seed, tensors, domains, RULE: tl.constexpr, ROWS: tl.constexpr,
    RESUMED: tl.constexpr, FINAL: tl.constexpr, SUMS: tl.constexpr, ALIGNED: tl.constexpr,
    DTYPE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    tensor = tl.load(owners + block)
    begin = tl.load(begins + block)
    if ALIGNED:
        begin = tl.multiple_of(begin, BLOCK)
    size = tl.load(sizes + tensor)
    base = tl.load(bases + tensor)
    offsets = begin + tl.arange(0, BLOCK)
    # A whole block is read without a mask, which would keep its loads narrow.
    if begin + BLOCK <= size:
        _combine_block(
            table, tensor, tensors, offsets, tl.full([BLOCK], 1, tl.int1), base, found, marks,
            found_before, total, second, signs, partials, constants, seed, domains, RULE, ROWS,
            RESUMED, FINAL, SUMS, ALIGNED, DTYPE, WIDE, BLOCK,
        )  # fmt: skip
    else:
        _combine_block(
            table, tensor, tensors, offsets, offsets < size, base, found, marks,
            found_before, total, second, signs, partials, constants, seed, domains, RULE, ROWS,
            RESUMED, FINAL, SUMS, ALIGNED, DTYPE, WIDE, BLOCK,
        )  # fmt: skip


@triton.jit
@no_type_check
def _replace(
    table, sizes, bases, owners, begins, summed, counts, constants, seed, found,
    ALIGNED: tl.constexpr, DTYPE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tensor = tl.load(owners + tl.program_id(0))
    offsets = tl.load(begins + tl.program_id(0)) + tl.arange(0, BLOCK)
    inside = offsets < tl.load(sizes + tensor)
    places, there = pointers_at(table, tensor, offsets, DTYPE, ALIGNED)
    value = tl.load(places, mask=inside & there, other=0.0).to(WIDE)
    agreeing = tl.load(counts).to(tl.float64)
    agreeing += tl.load(constants + 1) * tl.load(counts + 1).to(tl.float64)
    scale = tl.load(summed) / tl.maximum(agreeing, 1.0) / tl.load(constants)
    noise = _normal(tl.load(seed), tl.load(bases + tensor) + offsets).to(WIDE) * scale.to(WIDE)
    value = tl.where(value == value, value, noise)
    value = tl.where(tl.load(found) > 0, float("nan"), value)
    tl.store(places, value.to(DTYPE), mask=inside & there)


@triton.jit
@no_type_check
def _words(seed, numbers):
    """Four random 32-bit words for every component: Philox, keyed by the seed."""
    low = (numbers & 0xFFFFFFFF).to(tl.uint32)
    high = (numbers >> 32).to(tl.uint32)
    return tl.philox(seed, low, high, low * 0, low * 0)


@triton.jit
@no_type_check
def _uniform(seed, numbers):
    """Draws from the uniform distribution on [0, 1)."""
    first, _, _, _ = _words(seed, numbers)
    return tl.uint_to_uniform_float(first)


@triton.jit
@no_type_check
def _normal(seed, numbers):
    """Draws from N(0, 1), by Box and Muller, in float32."""
    first, second, _, _ = _words(seed, numbers)
    # in (0, 1]: the logarithm of 0 is no number
    radius = tl.sqrt(-2 * tl.log((first.to(tl.float32) + 1) * 2.3283064365386963e-10))
    return radius * tl.cos(second.to(tl.float32) * 1.4629180792671596e-09)  # 2π / 2³²
