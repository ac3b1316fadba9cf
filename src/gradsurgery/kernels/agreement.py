"""The compiled form of sign agreement: one pass over memory, split over torch's threads.

`name` is what `name_for` gives for the tensors; where it gives none, callers take the pieces.
"""

import ctypes

from jaxtyping import Float
from torch import Tensor

from gradsurgery.kernels import INTEGER, POINTER, function
from gradsurgery.kernels.spans import LEAST, in_spans


def agreement_sum(
    name: str, gradients: Float[Tensor, "domains params"], out: Float[Tensor, " params"]
) -> bool:
    """Write equation 3 into `out`; False where a NaN or an Inf turned up (or a sum overflowed)."""
    call = function(name, (POINTER, INTEGER, INTEGER, POINTER, INTEGER, INTEGER), INTEGER)
    pointers = gradients.data_ptr(), gradients.stride(0), len(gradients), out.data_ptr()
    return all(in_spans(len(out), lambda begin, end: call(*pointers, begin, end), least=LEAST))


def fold_agreement(
    name: str, total: Float[Tensor, " params"], gradient: Float[Tensor, " params"]
) -> None:
    """Add `gradient` to `total` where the signs are equal, and set NaN where they are not."""
    call = function(name, (POINTER, POINTER, INTEGER, INTEGER))
    pointers = total.data_ptr(), gradient.data_ptr()
    in_spans(len(total), lambda begin, end: call(*pointers, begin, end), least=LEAST)


def resolve_marks(name: str, total: Float[Tensor, " params"]) -> tuple[int, int]:
    """Set NaN to zero; how many components agree and are not zero, and how many are zero."""
    call = function(name, (POINTER, POINTER, INTEGER, INTEGER), INTEGER)
    pointer = total.data_ptr()

    def part(begin: int, end: int) -> tuple[int, int]:
        zeros = ctypes.c_int64()
        agreeing = int(call(pointer, ctypes.addressof(zeros), begin, end))
        return agreeing, zeros.value

    counts = in_spans(len(total), part, least=LEAST)
    return sum(agreeing for agreeing, _ in counts), sum(zeros for _, zeros in counts)
