"""The Triton programs of component-wise rules: one works on one block of one tensor."""

from typing import no_type_check

import torch
import triton
import triton.language as tl

TYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}
WARPS, TILE = 4, 1024
"""Of a program: warps, and components that they work on at a time."""

_SPARE = tl.constexpr(2.0**-24)
"""So much smaller, sums fit that end beyond the precision."""


@triton.jit
@no_type_check
def pointers_at(table, index, offsets, inside, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The places of a tensor's components, and which there are; none where there is no tensor."""
    address = tl.load(table + index)
    places = address.to(tl.pointer_type(TYPE)) + offsets
    if ALIGNED:  # read and written 16 bytes a time
        places = tl.max_contiguous(tl.multiple_of(places, 16), 4096)
    return places, tl.where(address != 0, inside, False)


@triton.jit
@no_type_check
def _fold_rows(
    table, tensor, tensors, offsets, inside, numbers, total, second, signs, domains,
    RULE: tl.constexpr, ROWS: tl.constexpr, RESUMED: tl.constexpr, ALIGNED: tl.constexpr,
    DTYPE: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """What is known of a tile after these rows: up to three numbers a component, whether all signs

    were the same, and a bit for every row whose gradient is not finite. The second number of rules
    that keep a total alone is the total once more, times _SPARE.
    """
    SIGNED: tl.constexpr = (RULE == "and-mask") or (RULE == "sand-mask")
    AGREEING: tl.constexpr = (RULE == "agr-sum") or (RULE == "agr-rand")
    SECOND: tl.constexpr = (RULE == "sand-mask") or (RULE == "graddrop")
    a = tl.zeros([TILE], dtype=WIDE)
    b = tl.zeros([TILE], dtype=WIDE)
    c = tl.zeros([TILE], dtype=tl.int32)
    lowest = tl.zeros([TILE], dtype=WIDE)
    highest = tl.zeros([TILE], dtype=WIDE)
    bad = tl.zeros([TILE], dtype=tl.int32)
    if RESUMED:
        a = tl.load(total + numbers, mask=inside, other=0.0)
        if AGREEING:  # NaN marks a conflict
            lowest = tl.where(a == a, a, -1.0)
            highest = tl.where(a == a, a, 1.0)
        b = a * _SPARE
        if SECOND:
            b = tl.load(second + numbers, mask=inside, other=0.0)
        if SIGNED:
            c = tl.load(signs + numbers, mask=inside, other=0)
    for row in tl.static_range(ROWS):
        places, there = pointers_at(table, row * tensors + tensor, offsets, inside, DTYPE, ALIGNED)
        g = tl.load(places, mask=there, other=0.0).to(WIDE)
        bad = bad | tl.where(tl.abs(g) < float("inf"), 0, 1 << row)
        if SIGNED:  # twice the sum of the signs, and 1 where one is not zero
            sign = (g > 0).to(tl.int32) - (g < 0).to(tl.int32)
            c = (c + 2 * sign) | (sign & 1)
        if AGREEING:
            if row > 0 or RESUMED:
                lowest = tl.minimum(lowest, g)
                highest = tl.maximum(highest, g)
            else:
                lowest = g
                highest = g
        if RULE == "sand-mask":  # Welford's update
            change = g - a
            a = a + change / (domains - ROWS + row + 1).to(WIDE)
            b = b + change * (g - a)
        elif RULE == "graddrop":
            a = a + tl.maximum(g, 0.0)
            b = b + tl.minimum(g, 0.0)
        else:
            a = a + g
            b = b + g * _SPARE
    same = (lowest > 0) | (highest < 0) | ((lowest == 0) & (highest == 0))
    return a, b, c, same, bad


@triton.jit
@no_type_check
def _update(
    a, b, c, same, numbers, constants, seed, domains, RULE: tl.constexpr, DIVIDES: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """The rule's update of a tile, where it agrees, where it moves, and what is summed up."""
    divisor = tl.load(constants).to(WIDE)
    agrees = same & (a != 0)
    moves = (same & (a == 0)) == 0  # not zero in every domain
    summed = a.to(tl.float64)
    fits = tl.abs(a) < float("inf")
    mean = a
    if DIVIDES:  # a mean that the precision holds, of a sum that it does not
        mean = tl.where(fits, a / divisor, b / divisor / _SPARE)
    if RULE == "agr-sum":
        update = tl.where(same, mean, 0.0)
    elif RULE == "agr-rand":
        kept = same & (tl.abs(a) + tl.load(constants + 1).to(WIDE) > 0)
        summed = tl.abs(tl.where(fits, summed, b.to(tl.float64) / _SPARE))
        summed = tl.where(kept, summed, 0.0)
        update = tl.where(kept, mean, float("nan"))
    elif RULE == "and-mask":
        kept = tl.abs(c >> 1).to(tl.float64) >= tl.load(constants + 1)
        moves = c != 0
        agrees = kept & (c != 0)
        summed = tl.where(kept, 1.0, 0.0).to(tl.float64)
        update = tl.where(kept, mean, 0.0)
    elif RULE == "sand-mask":
        margin = tl.abs(c >> 1).to(tl.float64) / domains - tl.load(constants + 1)
        ratio = margin * tl.load(constants + 2) / (b.to(tl.float64) / (domains - 1))
        # 0 / 0, no spread and exactly at the threshold, is NaN and gives 0
        power = tl.exp(-2 * tl.where(ratio > 0, ratio, 0.0))
        summed = (1 - power) / (1 + power)  # tanh
        moves = c != 0
        agrees = summed > 0
        update = a * summed.to(WIDE) / divisor
    elif RULE == "graddrop":
        leak = tl.load(constants + 1).to(WIDE)
        chosen = tl.where(a / (a - b) > _uniform(tl.load(seed), numbers), a, b)  # b if both are 0
        update = leak * (a + b) + (1 - leak) * chosen
    else:
        update = mean
    return update, agrees, moves, summed


@triton.jit
@no_type_check
def _combine_tile(
    table, tensor, tensors, offsets, inside, base, found_before, total, second, signs, constants,
    seed, domains, RULE: tl.constexpr, ROWS: tl.constexpr, RESUMED: tl.constexpr,
    FINAL: tl.constexpr, DIVIDES: tl.constexpr, ALIGNED: tl.constexpr, DTYPE: tl.constexpr,
    WIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Work on a tile of a block: how many components agree (and, times 2¹⁶, move), what is

    summed up, and the bits of the rows that are not finite, all component by component.
    """
    numbers = base + offsets
    a, b, c, same, bad = _fold_rows(
        table, tensor, tensors, offsets, inside, numbers, total, second, signs, domains,
        RULE, ROWS, RESUMED, ALIGNED, DTYPE, WIDE, TILE,
    )  # fmt: skip
    counts = tl.zeros([TILE], dtype=tl.int32)
    summed = tl.zeros([TILE], dtype=tl.float64)
    if FINAL:
        update, agrees, moves, summed = _update(
            a, b, c, same, numbers, constants, seed, domains, RULE, DIVIDES, WIDE
        )
        summed = tl.where(inside, summed, 0.0)
        if RULE != "agr-rand":  # whose marks are NaN; the bit tells of a sum beyond the precision
            fits = tl.abs(update.to(DTYPE).to(WIDE)) < float("inf")
            if RULE == "sand-mask":  # whose squares end before its gradients do
                fits = fits & (b < float("inf"))
            bad = bad | tl.where(fits | (bad != 0), 0, 1 << ROWS)
        update = tl.where(bad != 0, float("nan"), update)
        if RESUMED:
            update = tl.where(tl.load(found_before) > 0, float("nan"), update)
        place = ROWS * tensors + tensor
        places, there = pointers_at(table, place, offsets, inside, DTYPE, ALIGNED)
        tl.store(places, update.to(DTYPE), mask=there)
        # what no domain reaches has no update and is not counted
        counts = (agrees & there).to(tl.int32) + ((moves & there).to(tl.int32) << 16)
    else:
        if (RULE == "agr-sum") or (RULE == "agr-rand"):
            a = tl.where(same, a, float("nan"))
        tl.store(total + numbers, a, mask=inside)
        if (RULE == "sand-mask") or (RULE == "graddrop"):
            tl.store(second + numbers, b, mask=inside)
        if (RULE == "and-mask") or (RULE == "sand-mask"):
            tl.store(signs + numbers, c, mask=inside)
    return counts, summed, bad


@triton.jit
@no_type_check
def combine_program(
    table, sizes, bases, owners, begins, marks, found, found_before, total, second, signs,
    partials, constants, seed, tensors, domains, RULE: tl.constexpr, ROWS: tl.constexpr,
    RESUMED: tl.constexpr, FINAL: tl.constexpr, DIVIDES: tl.constexpr, COUNTS: tl.constexpr,
    SUMS: tl.constexpr, ALIGNED: tl.constexpr, DTYPE: tl.constexpr, WIDE: tl.constexpr,
    BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One block of `combine`, tile by tile: so many programs fit onto the card at once."""
    block = tl.program_id(0)
    tensor = tl.load(owners + block)
    begin = tl.load(begins + block)
    size = tl.load(sizes + tensor)
    base = tl.load(bases + tensor)
    counts = tl.zeros([TILE], dtype=tl.int32)
    bad = tl.zeros([TILE], dtype=tl.int32)
    summed = tl.zeros([TILE], dtype=tl.float64)
    # A whole block is read without a mask, which would keep its loads narrow.
    if begin + BLOCK <= size:
        for start in range(0, BLOCK, TILE):
            offsets = begin + start + tl.arange(0, TILE)
            more, sums, worse = _combine_tile(
                table, tensor, tensors, offsets, tl.full([TILE], 1, tl.int1), base, found_before,
                total, second, signs, constants, seed, domains, RULE, ROWS, RESUMED, FINAL,
                DIVIDES, ALIGNED, DTYPE, WIDE, TILE,
            )  # fmt: skip
            counts += more
            bad |= worse
            if SUMS:
                summed += sums
    else:
        for start in range(0, size - begin, TILE):
            offsets = begin + start + tl.arange(0, TILE)
            more, sums, worse = _combine_tile(
                table, tensor, tensors, offsets, offsets < size, base, found_before,
                total, second, signs, constants, seed, domains, RULE, ROWS, RESUMED, FINAL,
                DIVIDES, ALIGNED, DTYPE, WIDE, TILE,
            )  # fmt: skip
            counts += more
            bad |= worse
            if SUMS:
                summed += sums
    if tl.max(bad, 0) != 0:
        for row in tl.static_range(ROWS):
            if tl.max((bad >> row) & 1, 0) != 0:
                tl.store(marks + row * tensors + tensor, 1)
        tl.store(found, 1.0)
    if SUMS:
        tl.store(partials + block, tl.sum(summed, 0))
    if COUNTS:
        both = tl.sum(counts, 0)
        tl.atomic_add(marks + ROWS * tensors + tensor, both & 0xFFFF)
        tl.atomic_add(marks + (ROWS + 1) * tensors + tensor, both >> 16)


@triton.jit
@no_type_check
def _noise_tile(
    table, tensor, offsets, inside, base, scale, seed, spoilt,
    ALIGNED: tl.constexpr, DTYPE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Work on a tile of a block: where the result is not finite."""
    places, there = pointers_at(table, tensor, offsets, inside, DTYPE, ALIGNED)
    value = tl.load(places, mask=there, other=0.0).to(WIDE)
    value = tl.where(value == value, value, _normal(seed, base + offsets).to(WIDE) * scale)
    narrow = tl.where(spoilt, float("nan"), value).to(DTYPE)
    tl.store(places, narrow, mask=there)
    return tl.where(tl.abs(narrow.to(WIDE)) < float("inf"), 0, 1)


@triton.jit
@no_type_check
def noise_program(
    table, sizes, bases, owners, begins, summed, counts, reached, constants, seed, found,
    ALIGNED: tl.constexpr, DTYPE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """One block of what replaces marks by draws, tile by tile.

    counts: of the `reached` components, how many agree, and how many are not zero in every domain.
    """
    tensor = tl.load(owners + tl.program_id(0))
    begin = tl.load(begins + tl.program_id(0))
    size = tl.load(sizes + tensor)
    base = tl.load(bases + tensor)
    agreeing = tl.load(counts).to(tl.float64)
    agreeing += tl.load(constants + 1) * (reached - tl.load(counts + 1)).to(tl.float64)
    scale = (tl.load(summed) / tl.maximum(agreeing, 1.0) / tl.load(constants)).to(WIDE)
    key = tl.load(seed)
    spoilt = tl.load(found) > 0
    bad = tl.zeros([TILE], dtype=tl.int32)
    if begin + BLOCK <= size:
        for start in range(0, BLOCK, TILE):
            bad |= _noise_tile(
                table, tensor, begin + start + tl.arange(0, TILE), tl.full([TILE], 1, tl.int1),
                base, scale, key, spoilt, ALIGNED, DTYPE, WIDE,
            )  # fmt: skip
    else:
        for start in range(0, size - begin, TILE):
            offsets = begin + start + tl.arange(0, TILE)
            bad |= _noise_tile(
                table, tensor, offsets, offsets < size, base, scale, key, spoilt,
                ALIGNED, DTYPE, WIDE,
            )  # fmt: skip
    if tl.max(bad, 0) != 0:
        tl.store(found, 1.0)


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
