"""Interleaved timing: every contestant runs once a round, so that all see the same machine."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)


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


@dataclass(frozen=True)
class Timing:
    """Milliseconds, medians over the rounds.

    ms: of one call that the device has finished.
    queued_ms: a call of several that are started one after the other, as a loop does that never
        waits for the device.
    """

    ms: float
    queued_ms: float


def turns(
    contestants: Mapping[Name, Callable[[], object]],
    rounds: int,
    *,
    device: str,
    queued: int = 3,
) -> dict[Name, Timing]:
    """The contestants take turns on a device, after two calls that do not count."""
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    single: dict[Name, list[float]] = {name: [] for name in contestants}
    many: dict[Name, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()
        run()
    for _ in range(rounds):
        for name, run in contestants.items():
            for calls, seen in ((1, single[name]), (queued, many[name])):
                wait()
                start = time.perf_counter()
                for _ in range(calls):
                    run()
                wait()
                seen.append(1e3 * (time.perf_counter() - start) / calls)
    return {
        name: Timing(statistics.median(single[name]), statistics.median(many[name]))
        for name in contestants
    }


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
