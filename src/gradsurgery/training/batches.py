"""The next step's images are gathered while this step computes."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Batch = TypeVar("Batch")


def prefetched(
    at: Callable[[int], Batch], first: int, last: int, *, ahead: int = 1
) -> Iterator[tuple[int, Batch]]:
    """Yield `(step, at(step - 1))` for the steps `first` to `last`.

    One thread of its own works `ahead` steps in advance, in order; `at` is a pure function of its
    argument, so what is yielded does not depend on `ahead`. 0 does without the thread.
    """
    if ahead < 1:
        for step in range(first, last + 1):
            yield step, at(step - 1)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        pending = [pool.submit(at, step - 1) for step in range(first, min(first + ahead, last + 1))]
        for step in range(first, last + 1):
            batch = pending.pop(0).result()
            if step + ahead <= last:
                pending.append(pool.submit(at, step + ahead - 1))
            yield step, batch
