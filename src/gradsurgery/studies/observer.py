"""Measure a network at some of the steps of its training, each measurement kept at once."""

from collections.abc import Callable, Iterable
from pathlib import Path

from gradsurgery.backbones import Backbone
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.errors import ArgumentError, DataError


def check_every_step(configuration: RunConfiguration) -> None:
    """Raise `ArgumentError` for a run that may end before its last step is measured."""
    if configuration.patience:
        raise ArgumentError(
            "what is measured up to the last step needs all of them, found patience "
            f"{configuration.patience}; leave it out"
        )


class StepObserver:
    """An observer for `gradsurgery.training.train` that calls `measure(step, backbone)`.

    Args:
        steps: at which to measure, each once.
        file: that `measure` writes; what killed processes were writing of it is removed.
        measure: measures and writes.

    Raises `DataError` where the run goes on from a later step than one that is missing.
    """

    def __init__(
        self, steps: Iterable[int], file: Path, measure: Callable[[int, Backbone], None]
    ) -> None:
        self._missing = set(steps)
        self._file = file
        self._measure = measure

    def __call__(self, step: int, backbone: Backbone) -> None:
        """Measure where `step` is one of those that are missing."""
        if any(earlier < step for earlier in self._missing):
            raise DataError(
                f"{self._file.parent} holds a run at step {step} that was not measured at step "
                f"{min(self._missing)}; delete the folder, or choose another one"
            )
        if step not in self._missing:
            return
        for leftover in self._file.parent.glob(f".{self._file.name}.*.tmp"):
            leftover.unlink(missing_ok=True)
        self._measure(step, backbone)
        self._missing.remove(step)
