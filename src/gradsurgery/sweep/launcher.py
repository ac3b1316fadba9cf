"""What a launcher is: a number of places where runs are worked on, and what is done there."""

import os
import traceback
from abc import abstractmethod
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM
from typing import Any, Literal, NamedTuple

import torch

from gradsurgery.data import ImageSet, open_source
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.doors import fault_of
from gradsurgery.errors import GradsurgeryError, one_line
from gradsurgery.training import TrainingProgress, train
from gradsurgery.training.directory import BusyError
from gradsurgery.training.loggers import logged
from gradsurgery.training.progress import ProgressCallback
from gradsurgery.training.run import prepare_images

ASKED_TO_END = 128 + SIGTERM
"""The exit code of a worker that was asked to end."""


@dataclass(frozen=True)
class Task:
    """One run for a worker, in plain data that travels between processes.

    options: of its `RunConfiguration`.
    folder: the sweep's, absolute.
    directory: where it leaves its record, absolute.
    cache: folder of the decoded images; None is the default one.
    loggers: names of what its figures go to.
    working_directory: whose commit the record names.
    """

    options: dict[str, Any]
    folder: str
    directory: str
    cache: str | None
    loggers: tuple[str, ...]
    working_directory: str


@dataclass(frozen=True)
class Outcome:
    """What became of a task in a worker.

    state: "done" with a record on disk, "busy" where another process is working on the run,
        "failed" with `error` and `traceback`, "lost" where the worker itself is gone.
    """

    state: Literal["done", "busy", "failed", "lost"]
    error: str = ""
    traceback: str = ""


class Event(NamedTuple):
    """A word from a worker about one of the tasks: how far it is, or what became of it."""

    key: str
    news: TrainingProgress | Outcome


class Launcher(AbstractContextManager["Launcher"]):
    """Works on tasks; leaving it ends all work at once, which a later sweep resumes.

    workers: how many tasks at a time.
    """

    workers: int

    @abstractmethod
    def submit(self, key: str, task: Task) -> None:
        """Start a task; at most `workers` may be under way."""

    @abstractmethod
    def wait(self, seconds: float) -> list[Event]:
        """What happened, as soon as something did, within `seconds`.

        Every task ends with an `Outcome`, also where its worker is killed.
        """


_images: dict[tuple[str, str, int, bool, str | None], ImageSet] = {}
"""Decoded images, which a process keeps for its next run."""


def work(task: Task, report: ProgressCallback) -> Outcome:
    """Train the task's run; every error becomes an outcome, with its traceback."""
    torch.set_num_threads(task.options.get("threads") or 1)
    with suppress(OSError):  # a machine of a cluster may not have it
        os.chdir(task.working_directory)
    directory = Path(task.directory)
    try:
        c = RunConfiguration(**task.options)
        key = (c.data, str(c.reading), c.image_size, c.skip_bad, task.cache)
        if key not in _images:
            cache = None if task.cache is None else Path(task.cache)
            _images[key] = prepare_images(open_source(c.data, **c.reading), c, cache, report)
        with logged(task.loggers, directory, c, report) as log:
            log.finished(train(c, directory, log, opened=_images[key]))
    except BusyError as error:
        return Outcome("busy", str(error))
    except GradsurgeryError as error:
        return Outcome("failed", str(error), traceback.format_exc())
    except (Exception, SystemExit) as error:  # a sweep goes on, whatever a run does
        if isinstance(error, SystemExit) and error.code == ASKED_TO_END:
            raise
        return Outcome("failed", fault_of(error) or one_line(error), traceback.format_exc())
    return Outcome("done")
