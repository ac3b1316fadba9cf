"""The loops that are compiled for the processor: one pass over memory, split over torch's threads.

A C compiler was at hand at installation, or there is no library. `name` is what `name_for` gives
for the tensors; where it gives none, callers use torch or NumPy.
"""

import ctypes
import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from torch import Tensor

from gradsurgery.kernels import network

Result = TypeVar("Result")

POINTER, INTEGER = ctypes.c_void_p, ctypes.c_int64

LEAST = 1 << 17
"""Components of a gradient that are worth a thread."""
_BLOCK, _LANES = 64, 8  # as in gramian.c
_PRECISIONS = {torch.float32: "float32", torch.float64: "float64"}


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library, None where it was not built of these sources."""
    folder = Path(__file__).parent
    try:
        found = ctypes.CDLL(str(folder / "libgradsurgery.so"))
    except OSError:  # not built, or for another processor or C library
        return None
    sources = sorted(file for file in folder.iterdir() if file.suffix in (".c", ".h"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()
    try:
        built_of = (ctypes.c_char * len(digest)).in_dll(found, "built_of").value.decode()
    except ValueError:  # of a version that did not say
        built_of = ""
    if built_of != digest:
        warnings.warn(
            "the compiled loops are of another version and not used, which is slower; install "
            "gradsurgery anew",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return found


def name_for(operation: str, *tensors: Tensor) -> str | None:
    """The compiled `operation` for these tensors: "operation_float32" or "operation_float64".

    None where there is none: in another precision or place, with gaps along the last dimension or
    a minus sign that is not in memory, or without the library.
    """
    dtype, places = tensors[0].dtype, network.ONE_BY_ONE - network.DEVICES
    for tensor in tensors:
        if tensor.dtype != dtype or tensor.device.type not in places or tensor.is_neg():
            return None
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            return None
    name = f"{operation}_{_PRECISIONS.get(dtype)}"
    return name if hasattr(library(), name) else None


@cache
def function(name: str, arguments: Sequence[Any], result: Any = None) -> Callable[..., Any]:
    """A function of the library; a call releases Python's lock."""
    found = getattr(library(), name)
    found.argtypes, found.restype = list(arguments), result
    return found  # type: ignore[no-any-return]


def in_spans(
    length: int, call: Callable[[int, int], Result], *, least: int = LEAST, multiple: int = 1
) -> list[Result]:
    """The results of `call(begin, end)` on spans of 0 … length, at least one, in their order.

    For functions that release Python's lock: compiled ones, and NumPy's. Each thread goes through
    its span at its own pace, so that a core that is busy elsewhere does not hold up every
    operation. The threads are new ones: a pool would not survive a fork.

    least: a shorter span is not worth a thread.
    multiple: every span but the last is a multiple of it.
    """
    count = max(min(torch.get_num_threads(), math.ceil(length / least)), 1)
    if count == 1:
        return [call(0, length)]
    bounds = [length * part // count // multiple * multiple for part in range(count)] + [length]
    results: dict[int, Result] = {}
    errors: list[BaseException] = []

    def work(part: int) -> None:
        try:
            results[part] = call(bounds[part], bounds[part + 1])
        except BaseException as error:  # raised again by the caller's thread
            errors.append(error)

    others = [Thread(target=work, args=(part,)) for part in range(1, count)]
    for thread in others:
        thread.start()
    work(0)
    for thread in others:
        thread.join()
    if errors:
        raise errors[0]
    return [results[part] for part in range(count)]


def agreement_sum(
    name: str, gradients: Float[Tensor, "domains params"], out: Float[Tensor, " params"]
) -> bool:
    """Write equation 3 into `out`; False where a NaN or an Inf turned up (or a sum overflowed)."""
    call = function(name, (POINTER, INTEGER, INTEGER, POINTER, INTEGER, INTEGER), INTEGER)
    pointers = gradients.data_ptr(), gradients.stride(0), len(gradients), out.data_ptr()
    return all(in_spans(len(out), lambda begin, end: call(*pointers, begin, end)))


def fold_agreement(
    name: str, total: Float[Tensor, " params"], gradient: Float[Tensor, " params"]
) -> None:
    """Add `gradient` to `total` where the signs are equal, and set NaN where they are not."""
    call = function(name, (POINTER, POINTER, INTEGER, INTEGER))
    pointers = total.data_ptr(), gradient.data_ptr()
    in_spans(len(total), lambda begin, end: call(*pointers, begin, end))


def largest(name: str, gradient: Float[Tensor, " params"]) -> float:
    """The size of the largest component, NaN where there is one."""
    real = ctypes.c_float if gradient.dtype == torch.float32 else ctypes.c_double
    call, pointer = function(name, (POINTER, INTEGER, INTEGER), real), gradient.data_ptr()
    sizes = in_spans(len(gradient), lambda begin, end: float(call(pointer, begin, end)))
    return math.nan if any(map(math.isnan, sizes)) else max(sizes)


def resolve_marks(name: str, total: Float[Tensor, " params"]) -> tuple[int, int]:
    """Set NaN to zero; how many components agree and are not zero, and how many are zero."""
    call = function(name, (POINTER, POINTER, INTEGER, INTEGER), INTEGER)
    pointer = total.data_ptr()

    def part(begin: int, end: int) -> tuple[int, int]:
        zeros = ctypes.c_int64()
        agreeing = int(call(pointer, ctypes.addressof(zeros), begin, end))
        return agreeing, zeros.value

    counts = in_spans(len(total), part)
    return sum(agreeing for agreeing, _ in counts), sum(zeros for _, zeros in counts)


def survey_marks(name: str, total: Float[Tensor, " params"]) -> tuple[float, int, int]:
    """The sum of the sizes that are not NaN, in float64; how many are not 0 either, and are 0."""
    call = function(name, (POINTER, POINTER, POINTER, INTEGER, INTEGER), ctypes.c_double)
    pointer = total.data_ptr()

    def part(begin: int, end: int) -> tuple[float, int, int]:
        agreeing, zeros = ctypes.c_int64(), ctypes.c_int64()
        counts = ctypes.addressof(agreeing), ctypes.addressof(zeros)
        return float(call(pointer, *counts, begin, end)), agreeing.value, zeros.value

    sizes, agreeing, zeros = zip(*in_spans(len(total), part), strict=True)
    return sum(sizes), sum(agreeing), sum(zeros)


def fill_marks(
    name: str,
    total: Float[Tensor, " params"],
    noise: Float[Tensor, " params"],
    sigma: float,
    divisor: int,
    *,
    zero_agrees: bool,
) -> None:
    """Put `noise` times sigma where the total is NaN, or 0 unless zeros agree; then divide."""
    real = (ctypes.c_double, ctypes.c_double)
    call = function(name, (POINTER, POINTER, *real, INTEGER, INTEGER, INTEGER))
    given = total.data_ptr(), noise.data_ptr(), sigma, float(divisor), int(zero_agrees)
    in_spans(len(total), lambda begin, end: call(*given, begin, end))


def judge_means(
    name: str,
    gradients: Float[Tensor, "domains params"],
    memory: Float[Tensor, "domains params"],
    beta: float,
    *,
    out: Float[Tensor, " params"],
    marks: Bool[Tensor, "2 params"],
) -> bool:
    """Add beta times the memory to the gradients; write their sum where all have one sign then.

    marks: in which components that is so, and in which all are 0 then.

    False where something is not finite.
    """
    rows = (POINTER, INTEGER)
    given = (*rows, *rows, INTEGER, ctypes.c_double, POINTER, POINTER, POINTER)
    call = function(name, (*given, INTEGER, INTEGER), INTEGER)
    arguments = (
        *(gradients.data_ptr(), gradients.stride(0)),
        *(memory.data_ptr(), memory.stride(0)),
        *(len(gradients), beta),
        *(out.data_ptr(), marks[0].data_ptr(), marks[1].data_ptr()),
    )
    return all(in_spans(len(out), lambda begin, end: call(*arguments, begin, end)))


def gramian(
    name: str, rows: Sequence[Float[Tensor, " params"]]
) -> Float[Tensor, "domains domains"]:
    """G_ij = Σ_n rows[i]_n rows[j]_n, multiplied and summed in float64."""
    call = function(name, (POINTER, INTEGER, POINTER, POINTER, INTEGER, INTEGER))
    pointers, domains = _pointers(rows), len(rows)

    def part(begin: int, end: int) -> Tensor:
        total = torch.zeros(domains, domains, _LANES, dtype=torch.float64, device="cpu")
        wide = torch.empty(domains * _BLOCK, dtype=torch.float64, device="cpu")
        call(pointers, domains, wide.data_ptr(), total.data_ptr(), begin, end)
        return total.sum(-1)

    upper = torch.stack(in_spans(len(rows[0]), part)).sum(0)
    return upper + upper.triu(1).T


def weighted_sum(
    name: str, rows: Sequence[Float[Tensor, " params"]], weights: Tensor, out: Tensor
) -> None:
    """Write Σ_d w_d rows[d], summed in float64, into `out`, which may be one of the rows."""
    call = function(name, (POINTER, POINTER, INTEGER, POINTER, INTEGER, INTEGER))
    pointers, factors = _pointers(rows), weights.double().contiguous()
    given = pointers, factors.data_ptr(), len(rows), out.data_ptr()
    in_spans(len(out), lambda begin, end: call(*given, begin, end))


def _pointers(rows: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(rows))(*(row.data_ptr() for row in rows))


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


def change_images(
    pixels: UInt8[np.ndarray, "batch size size 3"],
    neighbours: Float64[np.ndarray, "2 3 batch size"],
    order: Int64[np.ndarray, "batch 4"],
    factors: Float[np.ndarray, "batch 4"],
    grey: Bool[np.ndarray, " batch"],
    *,
    colours: bool,
    least: int,
) -> UInt8[np.ndarray, "batch size size 3"]:
    """The images changed as data/augmentation.py says; less than `least` are not worth a thread."""
    images, size, out = len(pixels), pixels.shape[1], np.empty_like(pixels)
    given = (POINTER, POINTER, INTEGER, INTEGER, POINTER, INTEGER, *[POINTER] * 4)
    call = function("change_images", (*given, INTEGER, INTEGER))

    def part(begin: int, end: int) -> None:
        scratch = np.empty(3 * size * (size + 1), np.float32)
        about = (neighbours.ctypes.data, int(colours), order.ctypes.data, factors.ctypes.data)
        last = (*about, grey.ctypes.data, scratch.ctypes.data)
        call(pixels.ctypes.data, out.ctypes.data, images, size, *last, begin, end)

    in_spans(images, part, least=least)
    return out
