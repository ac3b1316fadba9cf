"""The Triton programs of inner products, sums weighted by them, and PCGrad's projections."""

from typing import no_type_check

import triton
import triton.language as tl

from gradsurgery.kernels.combine_programs import pointers_at


@triton.jit
@no_type_check
def _row(
    table, row, tensor, tensors, offsets, inside,
    DOMAINS: tl.constexpr, ALIGNED: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """A tile of a domain's gradient in float64, 0 where there is none."""
    index = tl.minimum(row, DOMAINS - 1) * tensors + tensor
    inside = tl.where(row < DOMAINS, inside, False)
    places, there = pointers_at(table, index, offsets, inside, DTYPE, ALIGNED)
    return tl.load(places, mask=there, other=0.0).to(tl.float64)


@triton.jit
@no_type_check
def _gramian_tiles(
    table, tensor, tensors, begin, end, i, j, marks, found, parts, FULL: tl.constexpr,
    SAME: tl.constexpr, DOMAINS: tl.constexpr, ALIGNED: tl.constexpr, DTYPE: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """The products of domains i to i + 3 with j to j + 3 over a block, kept in registers.

    SAME: whether i is j; their rows are read and made float64 once, and the lower triangle is left.
    """
    zero = tl.zeros([TILE], dtype=tl.float64)
    s00, s01, s02, s03 = zero, zero, zero, zero
    s10, s11, s12, s13 = zero, zero, zero, zero
    s20, s21, s22, s23 = zero, zero, zero, zero
    s30, s31, s32, s33 = zero, zero, zero, zero
    bad = tl.zeros([TILE], dtype=tl.int32)
    for start in range(begin, end, TILE):
        offsets = start + tl.arange(0, TILE)
        inside = tl.full([TILE], 1, tl.int1)
        if not FULL:
            inside = offsets < end
        a0 = _row(table, i, tensor, tensors, offsets, inside, DOMAINS, ALIGNED, DTYPE)
        a1 = _row(table, i + 1, tensor, tensors, offsets, inside, DOMAINS, ALIGNED, DTYPE)
        a2 = _row(table, i + 2, tensor, tensors, offsets, inside, DOMAINS, ALIGNED, DTYPE)
        a3 = _row(table, i + 3, tensor, tensors, offsets, inside, DOMAINS, ALIGNED, DTYPE)
        if SAME:
            bad |= tl.where(tl.abs(a0) < float("inf"), 0, 1)
            bad |= tl.where(tl.abs(a1) < float("inf"), 0, 2)
            bad |= tl.where(tl.abs(a2) < float("inf"), 0, 4)
            bad |= tl.where(tl.abs(a3) < float("inf"), 0, 8)
            s00, s01, s02, s03 = s00 + a0 * a0, s01 + a0 * a1, s02 + a0 * a2, s03 + a0 * a3
            s11, s12, s13 = s11 + a1 * a1, s12 + a1 * a2, s13 + a1 * a3
            s22, s23, s33 = s22 + a2 * a2, s23 + a2 * a3, s33 + a3 * a3
        else:
            b0 = _row(table, j, tensor, tensors, offsets, inside, DOMAINS, ALIGNED, DTYPE)
            b1 = _row(table, j + 1, tensor, tensors, offsets, inside, DOMAINS, ALIGNED, DTYPE)
            b2 = _row(table, j + 2, tensor, tensors, offsets, inside, DOMAINS, ALIGNED, DTYPE)
            b3 = _row(table, j + 3, tensor, tensors, offsets, inside, DOMAINS, ALIGNED, DTYPE)
            s00, s01, s02, s03 = s00 + a0 * b0, s01 + a0 * b1, s02 + a0 * b2, s03 + a0 * b3
            s10, s11, s12, s13 = s10 + a1 * b0, s11 + a1 * b1, s12 + a1 * b2, s13 + a1 * b3
            s20, s21, s22, s23 = s20 + a2 * b0, s21 + a2 * b1, s22 + a2 * b2, s23 + a2 * b3
            s30, s31, s32, s33 = s30 + a3 * b0, s31 + a3 * b1, s32 + a3 * b2, s33 + a3 * b3
    if SAME:
        for row in tl.static_range(4):
            if tl.max((bad >> row) & 1, 0) != 0:
                tl.store(marks + (i + row) * tensors + tensor, 1)
                tl.store(found, 1.0)
    _store_row(parts, i, j, 0, s00, s01, s02, s03, SAME, DOMAINS)
    _store_row(parts, i, j, 1, s10, s11, s12, s13, SAME, DOMAINS)
    _store_row(parts, i, j, 2, s20, s21, s22, s23, SAME, DOMAINS)
    _store_row(parts, i, j, 3, s30, s31, s32, s33, SAME, DOMAINS)


@triton.jit
@no_type_check
def _store_row(
    parts, i, j, row: tl.constexpr, s0, s1, s2, s3, SAME: tl.constexpr, DOMAINS: tl.constexpr
):
    """Those of the upper triangle, where i is j."""
    if not SAME or row == 0:
        _store_product(parts, i + row, j, s0, DOMAINS)
    if not SAME or row <= 1:
        _store_product(parts, i + row, j + 1, s1, DOMAINS)
    if not SAME or row <= 2:
        _store_product(parts, i + row, j + 2, s2, DOMAINS)
    _store_product(parts, i + row, j + 3, s3, DOMAINS)


@triton.jit
@no_type_check
def _store_product(parts, i, j, products, DOMAINS: tl.constexpr):
    if (i < DOMAINS) & (j < DOMAINS):
        product = tl.sum(products, 0)
        tl.store(parts + i * DOMAINS + j, product)
        tl.store(parts + j * DOMAINS + i, product)


@triton.jit
@no_type_check
def gramian_program(
    table, sizes, owners, begins, marks, found, parts, tensors, DOMAINS: tl.constexpr,
    ALIGNED: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Four domains by four over a block."""
    # programs of one block stand side by side, so that its rows are read from memory once
    groups: tl.constexpr = (DOMAINS + 3) // 4
    block = tl.program_id(0) // (groups * groups)
    pair = tl.program_id(0) % (groups * groups)
    i = pair // groups * 4
    j = pair % groups * 4
    tensor = tl.load(owners + block)
    begin = tl.load(begins + block)
    size = tl.load(sizes + tensor)
    parts += block * DOMAINS * DOMAINS
    # a whole block is read without a mask, which would keep its loads narrow
    if i == j:
        if begin + BLOCK <= size:
            _gramian_tiles(
                table, tensor, tensors, begin, begin + BLOCK, i, j, marks, found, parts, True, True,
                DOMAINS, ALIGNED, DTYPE, TILE,
            )  # fmt: skip
        else:
            _gramian_tiles(
                table, tensor, tensors, begin, size, i, j, marks, found, parts, False, True,
                DOMAINS, ALIGNED, DTYPE, TILE,
            )  # fmt: skip
    if DOMAINS > 4:  # noqa: SIM102  else there is no such pair, and its registers are free
        if i < j:
            if begin + BLOCK <= size:
                _gramian_tiles(
                    table, tensor, tensors, begin, begin + BLOCK, i, j, marks, found, parts, True,
                    False, DOMAINS, ALIGNED, DTYPE, TILE,
                )  # fmt: skip
            else:
                _gramian_tiles(
                    table, tensor, tensors, begin, size, i, j, marks, found, parts, False, False,
                    DOMAINS, ALIGNED, DTYPE, TILE,
                )  # fmt: skip


@triton.jit
@no_type_check
def _weighted_tile(
    table, tensor, tensors, offsets, inside, weights, found,
    DOMAINS: tl.constexpr, ALIGNED: tl.constexpr, DTYPE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    total = tl.zeros([TILE], dtype=tl.float64)
    if DOMAINS <= 8:
        for d in tl.static_range(DOMAINS):
            g = _row(table, d, tensor, tensors, offsets, inside, DOMAINS, ALIGNED, DTYPE)
            total += tl.load(weights + d) * g
    else:
        for d in range(DOMAINS):
            g = _row(table, d, tensor, tensors, offsets, inside, DOMAINS, ALIGNED, DTYPE)
            total += tl.load(weights + d) * g
    place = DOMAINS * tensors + tensor
    places, there = pointers_at(table, place, offsets, inside, DTYPE, ALIGNED)
    # by way of float32: bfloat16 is not made of float64
    narrow = total.to(tl.float32).to(DTYPE)
    tl.store(places, narrow, mask=there)
    if tl.max(tl.where(tl.abs(narrow.to(tl.float32)) < float("inf"), 0, 1), 0) != 0:
        tl.store(found, 1.0)


@triton.jit
@no_type_check
def weighted_sum_program(
    table, sizes, bases, owners, begins, weights, found, tensors, DOMAINS: tl.constexpr,
    ALIGNED: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One block of the weighted sum."""
    tensor = tl.load(owners + tl.program_id(0))
    begin = tl.load(begins + tl.program_id(0))
    size = tl.load(sizes + tensor)
    if begin + BLOCK <= size:
        for start in range(0, BLOCK, TILE):
            _weighted_tile(
                table, tensor, tensors, begin + start + tl.arange(0, TILE),
                tl.full([TILE], 1, tl.int1), weights, found, DOMAINS, ALIGNED, DTYPE, TILE,
            )  # fmt: skip
    else:
        for start in range(0, size - begin, TILE):
            offsets = begin + start + tl.arange(0, TILE)
            _weighted_tile(
                table, tensor, tensors, offsets, offsets < size, weights, found,
                DOMAINS, ALIGNED, DTYPE, TILE,
            )  # fmt: skip


@triton.jit
@no_type_check
def _gather_tile(
    table, tensor, offsets, inside, base, out, ALIGNED: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Copy a tile of a block: where it is not finite."""
    places, there = pointers_at(table, tensor, offsets, inside, DTYPE, ALIGNED)
    g = tl.load(places, mask=there, other=0.0)
    tl.store(out + base + offsets, g, mask=inside)
    return tl.where(tl.abs(g.to(tl.float64)) < float("inf"), 0, 1)


@triton.jit
@no_type_check
def gather_program(
    table, sizes, bases, owners, begins, flags, out,
    ALIGNED: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One block of a tensor, copied to its place in a flat vector, tile by tile."""
    tensor = tl.load(owners + tl.program_id(0))
    begin = tl.load(begins + tl.program_id(0))
    size = tl.load(sizes + tensor)
    base = tl.load(bases + tensor)
    bad = tl.zeros([TILE], dtype=tl.int32)
    if begin + BLOCK <= size:
        for start in range(0, BLOCK, TILE):
            bad |= _gather_tile(
                table, tensor, begin + start + tl.arange(0, TILE), tl.full([TILE], 1, tl.int1),
                base, out, ALIGNED, DTYPE,
            )  # fmt: skip
    else:
        for start in range(0, size - begin, TILE):
            offsets = begin + start + tl.arange(0, TILE)
            bad |= _gather_tile(
                table, tensor, offsets, offsets < size, base, out, ALIGNED, DTYPE
            )  # fmt: skip
    if tl.max(bad, 0) != 0:
        tl.store(flags + tensor, 1)


@triton.jit
@no_type_check
def projections_program(
    gramian,
    orders,
    coefficients,
    targets,
    constants,
    domains,
    AIMED: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One domain's projections, each after the other."""
    domain = tl.program_id(0)
    columns = tl.arange(0, WIDTH)
    there = columns < domains
    row = tl.where(columns == domain, 1.0, 0.0).to(tl.float64)
    own = tl.load(gramian + domain * domains + domain)
    for turn in range(domains - 1):
        other = tl.load(orders + domain * (domains - 1) + turn)
        line = tl.load(gramian + other * domains + columns, mask=there, other=0.0)
        product = tl.sum(row * line, 0)
        squared_other = tl.load(gramian + other * domains + other)
        change = product * 0
        if AIMED:
            beta = tl.load(constants)
            # ‖v‖² = Σ_ij c_i c_j G_ij
            both = columns[:, None] * domains + columns[None, :]
            whole = tl.load(gramian + both, mask=there[:, None] & there[None, :], other=0.0)
            squared = tl.sum(tl.sum(row[:, None] * row[None, :] * whole, 1), 0)
            usable = (squared_other > 0) & (squared > tl.load(constants + 1) * own)
            safe = tl.where(usable, squared, 1.0)
            length = tl.sqrt(tl.where(usable, squared_other, 1.0))
            cosine = product / (tl.sqrt(safe) * length)
            cosine = tl.minimum(tl.maximum(cosine, -1.0), 1.0)
            target = tl.load(targets + domain * domains + other)
            aim = tl.minimum(target, tl.load(constants + 2))
            sine = tl.sqrt(1 - cosine * cosine)
            aim_sine = tl.sqrt(1 - aim * aim)
            step = (aim * sine - cosine * aim_sine) / aim_sine
            change = tl.where(usable & (cosine < aim), tl.sqrt(safe) / length * step, 0.0)
            if usable & (beta != 0):
                place = targets + domain * domains + other
                tl.store(place, (1 - beta) * target + beta * cosine)
        else:
            change = tl.where(product < 0, -product / squared_other, 0.0)
        row = tl.where(columns == other, row + change, row)
    tl.store(coefficients + domain * domains + columns, row, mask=there)
