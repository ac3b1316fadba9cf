"""How a sweep gets on, for whoever shows it."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from gradsurgery.documents.record import Record
from gradsurgery.sweep.runs import SweepRun
from gradsurgery.training import TrainingProgress


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
    _start: float = field(default_factory=time.monotonic)

    def finished(self, run: SweepRun, record: Record, *, before: bool) -> None:
        """Count a run with a record."""
        self.running.pop(run.title, None)
        self.found += before
        self.done += not before
        self._seconds.append(record.cost.seconds)
        if not run.configuration.without:
            cell, accuracy = (run.data, run.configuration.target), record.result.best
            found = (accuracy.target_accuracy, run.configuration.method)
            self.best[cell] = max(self.best.get(cell, found), found, key=lambda each: each[0])

    def seconds_left(self) -> float | None:
        """From what the runs so far have taken; None before the first."""
        left = self.total - self.found - self.done - self.failed
        if not self._seconds or not left:
            return None if left else 0.0
        return statistics.mean(self._seconds) * left / min(self.workers, left)


Show = Callable[[SweepProgress, str], None]
"""Called with every change; the text is a line for a log, "" for a mere step of a run."""
