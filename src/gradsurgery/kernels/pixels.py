"""Pixels to the numbers of a table, compiled for the processor."""

import numpy as np
from jaxtyping import Float, UInt8

from gradsurgery.kernels import INTEGER, POINTER, function
from gradsurgery.kernels.spans import in_spans


def look_up_rgb(
    pixels: UInt8[np.ndarray, " numbers"],
    table: Float[np.ndarray, "3 256"],
    result: Float[np.ndarray, " numbers"],
    *,
    least: int,
) -> None:
    """result[i] = table[i mod 3, pixels[i]]; fewer than `least` are not worth a thread."""
    call = function("look_up_rgb", (POINTER, POINTER, POINTER, INTEGER, INTEGER))
    pointers = pixels.ctypes.data, table.ctypes.data, result.ctypes.data
    in_spans(len(pixels), lambda a, b: call(*pointers, a, b), least=least, multiple=3)
