"""Inner products of the domains' gradients, and sums weighted by them.

A float32 dot product over tens of millions of components is wrong by 1e-3. Here blocks of 1,024
components are multiplied in the gradients' precision (at least float32) and summed in float64.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from gradsurgery.rules.pieces import compiled, pieces

BLOCK = 1024


def gramian_of(rows: Sequence[Float[Tensor, " params"]]) -> Float[Tensor, "domains domains"]:
    """G_ij = Σ_n rows[i]_n rows[j]_n, float64 on the rows' device."""
    if rows[0].device.type != "cpu":
        return _products(rows, compiled(exact_dot))
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    with full_precision():
        for piece in pieces(*rows):
            products = _piece_gramian(piece)
            if not products.isfinite().all():  # float32 squares overflow from 1e19 on
                wide = torch.stack(piece).double()
                products = wide @ wide.T
            total += products
    return total


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply float32 as float32, whatever the user allows the layers of the network."""
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)


def exact_dot(left: Float[Tensor, " params"], right: Float[Tensor, " params"]) -> Float[Tensor, ""]:
    """Σ_n left_n right_n with products in at least float32, summed in float64."""
    return (left.to(_wide(left.dtype)) * right).sum(dtype=torch.float64)


def cosines_of(gramian: Float[Tensor, "domains domains"]) -> Float[Tensor, "domains domains"]:
    """cos_ij = G_ij / √(G_ii G_jj), and 0 where a gradient is zero."""
    norms = gramian.diagonal().sqrt()
    scale = norms[:, None] * norms[None, :]
    return torch.where(scale > 0, gramian / scale, 0.0)


def weighted_sum(
    rows: Sequence[Float[Tensor, " params"]],
    weights: Float[Tensor, " domains"],
    *,
    out: Float[Tensor, " params"],
) -> Float[Tensor, " params"]:
    """Write Σ_d w_d rows[d] into `out`, which may be the first of the rows."""
    first, *rest = weights.tolist()
    for target, row, *others in pieces(out, *rows):
        torch.mul(row, first, out=target)
        for other, weight in zip(others, rest, strict=True):
            target.add_(other, alpha=weight)
    return out


def _piece_gramian(piece: tuple[Tensor, ...]) -> Tensor:
    stacked = torch.stack(piece)
    stacked = stacked.to(_wide(stacked.dtype))
    whole = stacked.shape[1] // BLOCK * BLOCK
    blocks = stacked[:, :whole].unflatten(1, (-1, BLOCK)).transpose(0, 1)
    products = torch.bmm(blocks, blocks.transpose(1, 2)).sum(0, dtype=torch.float64)
    tail = stacked[:, whole:].double()
    return products + tail @ tail.T


def _products(rows: Sequence[Tensor], dot: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    size = range(len(rows))
    upper = torch.stack([dot(rows[i], rows[j]) for i in size for j in size if i <= j])
    total = upper.new_zeros(len(rows), len(rows))
    i, j = torch.triu_indices(len(rows), len(rows))
    total[i, j] = upper
    total[j, i] = upper
    return total


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
