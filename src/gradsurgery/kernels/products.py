"""Inner products of the domains' gradients over a whole network, and sums weighted by them.

Written in Triton; products and sums are in float64, as on the processor. The weights of PCGrad and
GradVac are found on the device too, so that no step waits for it.
"""

from collections.abc import Callable, Sequence

import torch
import triton
from jaxtyping import Float
from torch import Tensor

from gradsurgery.kernels.combine import constants_of
from gradsurgery.kernels.combine_programs import TILE, TYPES, WARPS
from gradsurgery.kernels.network import BLOCK, Rows, Seen, launch, layout_of, table_of
from gradsurgery.kernels.products_programs import (
    gather_program,
    gramian_program,
    projections_program,
    weighted_sum_program,
)

_PRODUCTS_TILE = 256

# Products of pairs are kept block by block; of so many numbers at a time.
_PARTS = 1 << 25


def weigh(
    rows: Rows,
    sizes: tuple[int, ...],
    weights_of: Callable[[Tensor], Tensor],
    *,
    out: list[Tensor | None],
) -> tuple[Float[Tensor, "domains domains"], Seen]:
    """Write into `out` the sum of the gradients with the weights for their Gramian, both float64.

    Returns the Gramian, and what was seen of the gradients.
    """
    total, flags, found = gramian(rows, sizes)
    weighted_sum(rows, sizes, weights_of(total), out=out, found=found)
    return total, Seen(flags, found)


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
    table, blocks = table_of(rows, device), len(layout.owners)
    at_a_time = max(_PARTS // domains**2, 1)
    groups = (domains + 3) // 4  # a program multiplies four domains with four
    total = torch.zeros(domains, domains, dtype=torch.float64, device=device)
    for first in range(0, blocks, at_a_time):
        count = min(at_a_time, blocks - first)
        parts = total.new_empty(count, domains, domains)
        launch(
            gramian_program,
            (count * groups**2,),
            table.addresses,
            layout.sizes,
            layout.owners[first:],
            layout.begins[first:],
            marks,
            found,
            parts,
            tensors,
            DOMAINS=domains,
            ALIGNED=table.aligned,
            DTYPE=TYPES[some.dtype],
            BLOCK=BLOCK,
            TILE=_PRODUCTS_TILE,
            num_warps=WARPS,
        )
        total = parts.sum(0) if count == blocks else total + parts.sum(0)
    return total, marks[:-1].view(domains, tensors), found


def weighted_sum(
    rows: Rows,
    sizes: tuple[int, ...],
    weights: Float[Tensor, " domains"],
    *,
    out: list[Tensor | None],
    found: Tensor,
) -> None:
    """Write Σ_d w_d g_d into `out`, whose tensors may be gradients; `weights` are float64.

    found: becomes 1.0 where a component is not finite.
    """
    some = next(tensor for tensor in out if tensor is not None)
    layout = layout_of(sizes, some.device)
    table = table_of([*rows, out], some.device)
    launch(
        weighted_sum_program,
        (len(layout.owners),),
        table.addresses,
        *layout,
        weights,
        found,
        len(out),
        DOMAINS=len(rows),
        ALIGNED=table.aligned,
        DTYPE=TYPES[some.dtype],
        BLOCK=BLOCK,
        TILE=TILE,
        num_warps=WARPS,
    )


def gather(
    tensors: Sequence[Tensor | None], sizes: tuple[int, ...], *, out: Float[Tensor, " params"]
) -> Tensor:
    """Write the tensors, of its precision, into `out` one after the other, 0 for those of None.

    Returns flags [tensors], not 0 where a tensor is not finite.
    """
    layout = layout_of(sizes, out.device)
    flags = torch.zeros(len(tensors), dtype=torch.int32, device=out.device)
    table = table_of([list(tensors)], out.device)
    launch(
        gather_program,
        (len(layout.owners),),
        table.addresses,
        *layout,
        flags,
        out,
        ALIGNED=table.aligned,
        DTYPE=TYPES[out.dtype],
        BLOCK=BLOCK,
        TILE=TILE,
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
    """Coefficients c with v_d = Σ_j c_dj g_j, by PCGrad's projections, or GradVac's with targets.

    orders: [domains, domains − 1], the other domains in the order in which each meets them.
    targets: φ̂, which the averages of the cosines are written back to unless beta is 0.
    """
    domains = len(gramian)
    coefficients = torch.empty_like(gramian)
    width = max(triton.next_power_of_2(domains), 2)
    launch(
        projections_program,
        (domains,),
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
