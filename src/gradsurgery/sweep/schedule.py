"""Which run of a sweep is next, and how the sweep gets on, for whoever shows it."""

import statistics
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from gradsurgery.documents.record import Record
from gradsurgery.sweep.launcher import Outcome
from gradsurgery.sweep.runs import SweepRun
from gradsurgery.training import TrainingProgress

_LOSSES = 10  # a run whose worker dies so often kills its workers


@dataclass
class Schedule:
    """The runs of a sweep by key. A run that another process works on is asked for again later.

    retries: how often a run that failed is tried again. A worker that is lost is no failure of
        its run, up to ten times.
    """

    keys: Iterable[str]
    retries: int
    running: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)
    failed: dict[str, Outcome] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    losses: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._waiting = deque(self.keys)
        self._aside: dict[str, float] = {}

    @property
    def unfinished(self) -> bool:
        """Whether any run is still to be done."""
        return bool(self._waiting or self._aside or self.running)

    @property
    def aside(self) -> int:
        """How many runs another process works on."""
        return len(self._aside)

    def next(self, now: float) -> str | None:
        """A run to start, None where there is none at the time `now` (seconds)."""
        if self._waiting:
            key = self._waiting.popleft()
        else:
            due = [key for key, until in self._aside.items() if until <= now]
            if not due:
                return None
            key = due[0]
            del self._aside[key]
        self.running.add(key)
        return key

    def finished(self, key: str) -> None:
        """The run's record is there."""
        self.running.discard(key)
        self.done.add(key)

    def fail(self, key: str, outcome: Outcome) -> None:
        """The run is given up at once."""
        self.running.discard(key)
        self.failed[key] = outcome

    def put_aside(self, key: str, until: float) -> None:
        """Another process works on the run: ask again at the time `until`."""
        self.running.discard(key)
        self._aside[key] = until

    def stopped(self, key: str, outcome: Outcome) -> bool:
        """The run failed or its worker was lost; whether it is given up."""
        counts = self.losses if outcome.state == "lost" else self.attempts
        counts[key] = counts.get(key, 0) + 1
        limit = _LOSSES if outcome.state == "lost" else self.retries
        if counts[key] > limit:
            self.fail(key, outcome)
            return True
        self.running.discard(key)
        if outcome.state == "lost":  # goes on from its checkpoint at once
            self._waiting.appendleft(key)
        else:
            self._waiting.append(key)
        return False


@dataclass
class SweepProgress:
    """The runs of a sweep by what has become of them.

    found: how many were finished before.
    running: how far each run under way is; None before its first word.
    aside: how many runs another process works on.
    best: the highest target accuracy so far in each (data set, target), and its method.
    """

    total: int
    workers: int
    found: int = 0
    done: int = 0
    failed: int = 0
    aside: int = 0
    running: dict[str, TrainingProgress | None] = field(default_factory=dict)
    best: dict[tuple[str, str], tuple[float, str]] = field(default_factory=dict)
    _seconds: list[float] = field(default_factory=list)

    def finished(self, run: SweepRun, record: Record, *, before: bool) -> None:
        """Count a run with a record."""
        self.running.pop(run.title, None)
        self.found += before
        self.done += not before
        self._seconds.append(record.cost.seconds)
        accuracy = record.result.best.target_accuracy
        if accuracy is not None and not run.configuration.without:
            cell = (run.data, run.configuration.target)
            found = (accuracy, run.configuration.method)
            self.best[cell] = max(self.best.get(cell, found), found, key=lambda each: each[0])

    def seconds_left(self) -> float | None:
        """From what the runs so far have taken; None before the first."""
        left = self.total - self.found - self.done - self.failed
        if not self._seconds or not left:
            return None if left else 0.0
        return statistics.mean(self._seconds) * left / min(self.workers, left)


Show = Callable[[SweepProgress, str], None]
"""Called with every change; the text is a line for a log, "" for a mere step of a run."""
