"""The few loops that are compiled, where a C compiler was at hand at installation.

What they compute is also there in torch's or NumPy's operations, which callers use where the
library is missing.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

POINTER, INTEGER = ctypes.c_void_p, ctypes.c_int64


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library, None where it was not built."""
    path = Path(__file__).with_name("libgradsurgery.so")
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # not built, or for another processor or C library
        return None


@cache
def function(name: str, arguments: Sequence[Any], result: Any = None) -> Callable[..., Any]:
    """A function of the library; a call releases Python's lock."""
    found = getattr(library(), name)
    found.argtypes, found.restype = list(arguments), result
    return found  # type: ignore[no-any-return]
