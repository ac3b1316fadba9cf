"""The compiled form of sign agreement: one pass over memory, split over torch's threads.

Built from `fused.c` when the package is installed. Where it is missing (no C compiler then), or a
tensor is not float32 or float64 in the processor's memory, callers take the pieces instead.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from gradsurgery.rules.pieces import PIECE_PER_THREAD
from gradsurgery.spans import Result, in_spans

_NAMES = {torch.float32: "float32", torch.float64: "float64"}


def applies_to(*tensors: Tensor) -> bool:
    """Whether the compiled functions can work on these tensors."""
    first = tensors[0]
    return (
        first.device.type == "cpu"
        and first.dtype in _NAMES
        and all(tensor.dtype == first.dtype for tensor in tensors)
        and all(tensor.shape[-1] < 2 or tensor.stride(-1) == 1 for tensor in tensors)
        and _library() is not None
    )


def agreement_sum(
    gradients: Float[Tensor, "domains params"], out: Float[Tensor, " params"]
) -> bool:
    """Write equation 3 into `out`; False where a NaN or an Inf turned up (or a sum overflowed)."""
    call = _function("agreement_sum", gradients.dtype)
    pointers = gradients.data_ptr(), gradients.stride(0), len(gradients), out.data_ptr()
    return all(_spans(len(out), lambda begin, end: call(*pointers, begin, end)))


def fold_agreement(total: Float[Tensor, " params"], gradient: Float[Tensor, " params"]) -> None:
    """Add `gradient` to `total` where the signs are equal, and set NaN where they are not."""
    call = _function("fold_agreement", total.dtype)
    pointers = total.data_ptr(), gradient.data_ptr()
    _spans(len(total), lambda begin, end: call(*pointers, begin, end))


def clear_marks(total: Float[Tensor, " params"], *, zero_agrees: bool) -> int:
    """Set NaN to zero and return how many components agree."""
    call = _function("clear_marks", total.dtype)
    pointer, count_zeros = total.data_ptr(), int(zero_agrees)
    return sum(_spans(len(total), lambda begin, end: call(pointer, count_zeros, begin, end)))


def _spans(length: int, call: Callable[[int, int], Result]) -> list[Result]:
    return in_spans(length, call, least=PIECE_PER_THREAD)


@cache
def _library() -> ctypes.CDLL | None:
    path = Path(__file__).with_name("libfused.so")
    return ctypes.CDLL(str(path)) if path.exists() else None


@cache
def _function(name: str, dtype: torch.dtype) -> Callable[..., int]:
    function = getattr(_library(), f"{name}_{_NAMES[dtype]}")
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    function.argtypes, function.restype = {
        "agreement_sum": ([pointer, integer, integer, pointer, integer, integer], ctypes.c_int),
        "fold_agreement": ([pointer, pointer, integer, integer], None),
        "clear_marks": ([pointer, integer, integer, integer], integer),
    }[name]
    return function  # type: ignore[no-any-return]
