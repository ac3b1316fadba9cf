"""Interleaved timing: every contestant runs once a round, so that all see the same machine."""

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list]:
    """Seconds of each contestant in each round, after one round that does not count.

    clock: `time.process_time` for processor time, on a machine that others keep busy.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(rounds + 1):
        for name, run in contestants.items():
            start = clock()
            result = run()
            elapsed = clock() - start
            del result
            if round_:
                seconds[name].append(elapsed)
    return seconds


def print_ratios(
    seconds: Mapping[str, list[float]], baseline: str, only: str | None = None
) -> None:
    """Median milliseconds, and the median of the ratios to the baseline round by round."""
    for name, values in seconds.items():
        if only not in (None, name):
            continue
        ratios = [a / b for a, b in zip(values, seconds[baseline], strict=True)]
        print(
            f"  {name:44s} {statistics.median(values) * 1e3:10.1f} ms "
            f"{statistics.median(ratios):8.2f} x"
        )
