"""The compiled form of sign agreement: one pass over memory, split over torch's threads.

Where the library is missing, or a tensor is not float32 or float64 in the processor's memory,
callers take the pieces instead.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from gradsurgery.kernels import INTEGER, POINTER, function, library
from gradsurgery.kernels.spans import Result, in_spans
from gradsurgery.rules.pieces import PIECE_PER_THREAD

_NAMES = {torch.float32: "float32", torch.float64: "float64"}


def applies_to(*tensors: Tensor) -> bool:
    """Whether the compiled functions can work on these tensors."""
    first = tensors[0]
    return (
        first.device.type == "cpu"
        and first.dtype in _NAMES
        and all(tensor.dtype == first.dtype for tensor in tensors)
        and all(tensor.shape[-1] < 2 or tensor.stride(-1) == 1 for tensor in tensors)
        and library() is not None
    )


def agreement_sum(
    gradients: Float[Tensor, "domains params"], out: Float[Tensor, " params"]
) -> bool:
    """Write equation 3 into `out`; False where a NaN or an Inf turned up (or a sum overflowed)."""
    arguments = (POINTER, INTEGER, INTEGER, POINTER, INTEGER, INTEGER)
    call = function(f"agreement_sum_{_NAMES[gradients.dtype]}", arguments, INTEGER)
    pointers = gradients.data_ptr(), gradients.stride(0), len(gradients), out.data_ptr()
    return all(_spans(len(out), lambda begin, end: call(*pointers, begin, end)))


def fold_agreement(total: Float[Tensor, " params"], gradient: Float[Tensor, " params"]) -> None:
    """Add `gradient` to `total` where the signs are equal, and set NaN where they are not."""
    arguments = (POINTER, POINTER, INTEGER, INTEGER)
    call = function(f"fold_agreement_{_NAMES[total.dtype]}", arguments)
    pointers = total.data_ptr(), gradient.data_ptr()
    _spans(len(total), lambda begin, end: call(*pointers, begin, end))


def clear_marks(total: Float[Tensor, " params"], *, zero_agrees: bool) -> int:
    """Set NaN to zero and return how many components agree."""
    arguments = (POINTER, INTEGER, INTEGER, INTEGER)
    call = function(f"clear_marks_{_NAMES[total.dtype]}", arguments, INTEGER)
    pointer, count_zeros = total.data_ptr(), int(zero_agrees)
    return sum(_spans(len(total), lambda begin, end: call(pointer, count_zeros, begin, end)))


def _spans(length: int, call: Callable[[int, int], Result]) -> list[Result]:
    return in_spans(length, call, least=PIECE_PER_THREAD)
