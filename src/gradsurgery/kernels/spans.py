"""Split work on long flat memory over torch's threads, one span a thread.

For functions that release Python's lock: compiled ones, and NumPy's. Each thread goes through its
span at its own pace, so that a core that is busy elsewhere does not hold up every operation.
"""

import math
from collections.abc import Callable
from threading import Thread
from typing import TypeVar

import torch

Result = TypeVar("Result")

LEAST = 1 << 17
"""Components of a gradient that are worth a thread."""


def in_spans(
    length: int, call: Callable[[int, int], Result], *, least: int, multiple: int = 1
) -> list[Result]:
    """The results of `call(begin, end)` on spans of 0 … length, at least one, in their order.

    least: a shorter span is not worth a thread.
    multiple: every span but the last is a multiple of it.

    The threads are new ones: a pool would not survive a fork.
    """
    count = max(min(torch.get_num_threads(), math.ceil(length / least)), 1)
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
