"""What a launcher is: a number of places where runs are worked on, here or on other machines."""

from abc import abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from gradsurgery.training import TrainingProgress


@dataclass(frozen=True)
class Task:
    """One run for a worker, in plain data that travels between processes.

    options: of its `RunConfiguration`.
    folder: the sweep's, absolute.
    directory: where it leaves its record, absolute.
    cache: folder of the decoded images; None is the default one.
    tensorboard: whether to write event files.
    working_directory: whose commit the record names.
    """

    options: dict[str, Any]
    folder: str
    directory: str
    cache: str | None
    tensorboard: bool
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
