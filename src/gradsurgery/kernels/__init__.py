"""The few loops that are compiled, where a C compiler was at hand at installation.

What they compute is also there in torch's or NumPy's operations, which callers use where the
library is missing.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

POINTER, INTEGER = ctypes.c_void_p, ctypes.c_int64


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library, None where it was not built."""
    path = Path(__file__).with_name("libgradsurgery.so")
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # not built, or for another processor or C library
        return None


def name_for(operation: str, *tensors: "Tensor") -> str | None:
    """The compiled `operation` for these tensors: "operation_float32" or "operation_float64".

    None where there is none: in another precision or place, with gaps along the last dimension, or
    in a library that was built before the operation was written.
    """
    first = tensors[0]
    name = f"{operation}_{str(first.dtype).removeprefix('torch.')}"
    fits = all(
        tensor.device.type == "cpu"
        and tensor.dtype == first.dtype
        and (tensor.shape[-1] < 2 or tensor.stride(-1) == 1)
        for tensor in tensors
    )
    return name if fits and hasattr(library(), name) else None


@cache
def function(name: str, arguments: Sequence[Any], result: Any = None) -> Callable[..., Any]:
    """A function of the library; a call releases Python's lock."""
    found = getattr(library(), name)
    found.argtypes, found.restype = list(arguments), result
    return found  # type: ignore[no-any-return]
