"""The compiled form of inner products and weighted sums: one pass over memory.

`name` is what `name_for` gives for the rows; where it gives none, callers use torch.
"""

import ctypes
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from gradsurgery.kernels import INTEGER, POINTER, function
from gradsurgery.kernels.spans import LEAST, in_spans

# As in gramian.c.
_BLOCK = 256


def gramian(
    name: str, rows: Sequence[Float[Tensor, " params"]]
) -> Float[Tensor, "domains domains"]:
    """G_ij = Σ_n rows[i]_n rows[j]_n, multiplied and summed in float64."""
    call = function(name, (POINTER, INTEGER, POINTER, POINTER, INTEGER, INTEGER))
    pointers, domains = _pointers(rows), len(rows)

    def part(begin: int, end: int) -> Tensor:
        total = torch.zeros(domains, domains, dtype=torch.float64)
        wide = torch.empty(domains * _BLOCK, dtype=torch.float64)
        call(pointers, domains, wide.data_ptr(), total.data_ptr(), begin, end)
        return total

    upper = torch.stack(in_spans(len(rows[0]), part, least=LEAST)).sum(0)
    return upper + upper.triu(1).T


def weighted_sum(
    name: str, rows: Sequence[Float[Tensor, " params"]], weights: Tensor, out: Tensor
) -> None:
    """Write Σ_d w_d rows[d], summed in float64, into `out`, which may be one of the rows."""
    call = function(name, (POINTER, POINTER, INTEGER, POINTER, INTEGER, INTEGER))
    pointers, factors = _pointers(rows), weights.double().contiguous()
    given = pointers, factors.data_ptr(), len(rows), out.data_ptr()
    in_spans(len(out), lambda begin, end: call(*given, begin, end), least=LEAST)


def _pointers(rows: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(rows))(*(row.data_ptr() for row in rows))
