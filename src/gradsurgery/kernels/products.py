"""Inner products of the domains' gradients over a whole network, and sums weighted by them.

Written in Triton; products and sums are in float64, as on the processor. The weights of PCGrad and
GradVac are found on the device too, so that no step waits for it.
"""

from collections.abc import Sequence
from typing import no_type_check
import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from gradsurgery.kernels.combine import TYPES, WARPS, constants_of, pointers_at
from gradsurgery.kernels.network import (
    BLOCK,
    Rows,
    address_table,
    are_aligned,
    launch,
    layout_of,
)


# Products of pairs are kept block by block; of so many numbers at a time.
_PARTS = 1 << 25


def gramian(
    rows: Rows, sizes: tuple[int, ...]
) -> tuple[Float[Tensor, "domains domains"], Tensor, Tensor]:
    """G_ij = Σ_n g_in g_jn in float64; flags [domains, tensors] and whether one is set, as a float.

    A flag is not 0 where a gradient is not finite.
    """
    some = next(tensor for row in rows for tensor in row if tensor is not None)
    domains, tensors, device = len(rows), len(rows[0]), some.device
    layout = layout_of(sizes, device)
    marks = torch.zeros(domains * tensors + 1, dtype=torch.int32, device=device)
    found = marks[-1].view(torch.float32)
    table, blocks = address_table(rows, device), len(layout.owners)
    at_a_time = max(_PARTS // domains**2, 1)
    total = torch.zeros(domains, domains, dtype=torch.float64, device=device)
    for first in range(0, blocks, at_a_time):
        count = min(at_a_time, blocks - first)
        parts = total.new_empty(count, domains, domains)
        launch(
            _gramian,
            count,
            table,
            layout.sizes,
            layout.owners[first:],
            layout.begins[first:],
            marks,
            found,
            parts,
            tensors,
            DOMAINS=domains,
            ALIGNED=are_aligned(rows),
            DTYPE=TYPES[some.dtype],
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
        total = parts.sum(0) if count == blocks else total + parts.sum(0)
    return total, marks[:-1].view(domains, tensors), found


def weighted_sum(
    rows: Rows,
    sizes: tuple[int, ...],
    weights: Float[Tensor, " domains"],
    *,
    out: Sequence[Tensor | None],
) -> None:
    """Write Σ_d w_d g_d into `out`, whose tensors may be gradients; `weights` are float64."""
    some = next(tensor for tensor in out if tensor is not None)
    layout = layout_of(sizes, some.device)
    launch(
        _weighted_sum,
        len(layout.owners),
        address_table([*rows, out], some.device),
        *layout,
        weights,
        len(out),
        DOMAINS=len(rows),
        ALIGNED=are_aligned([*rows, out]),
        DTYPE=TYPES[some.dtype],
        BLOCK=BLOCK,
        num_warps=WARPS,
    )


def gather(
    tensors: Sequence[Tensor | None], sizes: tuple[int, ...], *, out: Float[Tensor, " params"]
) -> Tensor:
    """Write the tensors into `out` one after the other, 0 for those that are None.

    Returns flags [tensors], not 0 where a tensor is not finite.
    """
    layout = layout_of(sizes, out.device)
    flags = torch.zeros(len(tensors), dtype=torch.int32, device=out.device)
    kinds = {tensor.dtype for tensor in tensors if tensor is not None}
    for dtype in kinds or {out.dtype}:
        chosen = [t if t is None or t.dtype == dtype else None for t in tensors]
        skipped = [t is not None and t.dtype != dtype for t in tensors]
        launch(
            _gather,
            len(layout.owners),
            address_table([chosen], out.device),
            *layout,
            torch.tensor(skipped, dtype=torch.int8).to(out.device),
            flags,
            out,
            ALIGNED=are_aligned([chosen]),
            DTYPE=TYPES[dtype],
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
    return flags


def projections(
    gramian: Float[Tensor, "domains domains"],
    orders: Tensor,
    targets: Float[Tensor, "domains domains"] | None = None,
    *,
    beta: float = 0.0,
    vanished: float = 0.0,
    largest: float = 0.0,
) -> Float[Tensor, "domains domains"]:
    """c with v_d = Σ_j c_dj g_j after PCGrad's projections, or with targets after GradVac's.

    orders: [domains, domains − 1], the other domains in the order in which each meets them.
    targets: φ̂, which the averages of the cosines are written back to unless beta is 0.
    """
    domains = len(gramian)
    coefficients = torch.empty_like(gramian)
    width = max(triton.next_power_of_2(domains), 2)
    launch(
        _projections,
        domains,
        gramian,
        orders,
        coefficients,
        gramian if targets is None else targets,
        constants_of((beta, vanished, largest), gramian.device),
        domains,
        AIMED=targets is not None,
        WIDTH=width,
    )
    return coefficients


@triton.jit
@no_type_check
def _gramian_block(
    table, tensor, tensors, offsets, inside, marks, found, parts,
    DOMAINS: tl.constexpr, ALIGNED: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    parts += tl.program_id(0) * DOMAINS * DOMAINS
    for i in range(DOMAINS):
        places, there = pointers_at(table, i * tensors + tensor, offsets, DTYPE, ALIGNED)
        left = tl.load(places, mask=inside & there, other=0.0).to(tl.float64)
        bad = tl.max(tl.where(tl.abs(left) < float("inf"), 0, 1), 0)
        if bad != 0:
            tl.store(marks + i * tensors + tensor, 1)
            tl.store(found, 1.0)
        for j in range(i, DOMAINS):
            places, there = pointers_at(table, j * tensors + tensor, offsets, DTYPE, ALIGNED)
            right = tl.load(places, mask=inside & there, other=0.0).to(tl.float64)
            product = tl.sum(left * right, 0)
            tl.store(parts + i * DOMAINS + j, product)
            tl.store(parts + j * DOMAINS + i, product)


@triton.jit
@no_type_check
def _gramian(
    table, sizes, owners, begins, marks, found, parts, tensors,
    DOMAINS: tl.constexpr, ALIGNED: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tensor = tl.load(owners + tl.program_id(0))
    begin = tl.load(begins + tl.program_id(0))
    size = tl.load(sizes + tensor)
    offsets = begin + tl.arange(0, BLOCK)
    if begin + BLOCK <= size:  # a whole block is read without a mask, which would keep loads narrow
        _gramian_block(
            table, tensor, tensors, offsets, tl.full([BLOCK], 1, tl.int1), marks, found, parts,
            DOMAINS, ALIGNED, DTYPE,
        )  # fmt: skip
    else:
        _gramian_block(
            table, tensor, tensors, offsets, offsets < size, marks, found, parts,
            DOMAINS, ALIGNED, DTYPE,
        )  # fmt: skip


@triton.jit
@no_type_check
def _weighted_block(
    table, tensor, tensors, offsets, inside, weights,
    DOMAINS: tl.constexpr, ALIGNED: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    total = tl.zeros([BLOCK], dtype=tl.float64)
    for d in range(DOMAINS):
        places, there = pointers_at(table, d * tensors + tensor, offsets, DTYPE, ALIGNED)
        g = tl.load(places, mask=inside & there, other=0.0).to(tl.float64)
        total += tl.load(weights + d) * g
    places, there = pointers_at(table, DOMAINS * tensors + tensor, offsets, DTYPE, ALIGNED)
    tl.store(places, total.to(DTYPE), mask=inside & there)


@triton.jit
@no_type_check
def _weighted_sum(
    table, sizes, bases, owners, begins, weights, tensors,
    DOMAINS: tl.constexpr, ALIGNED: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tensor = tl.load(owners + tl.program_id(0))
    begin = tl.load(begins + tl.program_id(0))
    size = tl.load(sizes + tensor)
    offsets = begin + tl.arange(0, BLOCK)
    if begin + BLOCK <= size:
        _weighted_block(
            table, tensor, tensors, offsets, tl.full([BLOCK], 1, tl.int1), weights,
            DOMAINS, ALIGNED, DTYPE, BLOCK,
        )  # fmt: skip
    else:
        _weighted_block(
            table, tensor, tensors, offsets, offsets < size, weights,
            DOMAINS, ALIGNED, DTYPE, BLOCK,
        )  # fmt: skip


@triton.jit
@no_type_check
def _gather(
    table, sizes, bases, owners, begins, skipped, flags, out,
    ALIGNED: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tensor = tl.load(owners + tl.program_id(0))
    if tl.load(skipped + tensor) == 0:
        offsets = tl.load(begins + tl.program_id(0)) + tl.arange(0, BLOCK)
        inside = offsets < tl.load(sizes + tensor)
        places, there = pointers_at(table, tensor, offsets, DTYPE, ALIGNED)
        g = tl.load(places, mask=inside & there, other=0.0)
        bad = tl.max(tl.where(tl.abs(g.to(tl.float64)) < float("inf"), 0, 1), 0)
        if bad != 0:
            tl.store(flags + tensor, 1)
        tl.store(out + tl.load(bases + tensor) + offsets, g, mask=inside)


@triton.jit
@no_type_check
def _projections(
    gramian,
    orders,
    coefficients,
    targets,
    constants,
    domains,
    AIMED: tl.constexpr,
    WIDTH: tl.constexpr,
):
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
            if usable:
                if beta != 0:
                    tl.store(
                        targets + domain * domains + other, (1 - beta) * target + beta * cosine
                    )
        else:
            change = tl.where(product < 0, -product / squared_other, 0.0)
        row = tl.where(columns == other, row + change, row)
    tl.store(coefficients + domain * domains + columns, row, mask=there)
