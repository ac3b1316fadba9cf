"""Ask the C library to keep freed memory instead of returning it to the kernel."""

import ctypes
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Let glibc reuse freed memory: no large block gets pages of its own, none is trimmed.

    A training step allocates the same large tensors again and again; by default each comes from
    the kernel as untouched pages, and faulting those in costs more than some of the arithmetic.
    Returns whether the settings were accepted: False where the C library is another.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # -1 is the largest threshold: glibc reads it as an unsigned size.
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
