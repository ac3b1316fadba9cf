"""Where runs are worked on: what a launcher is, what a worker does, and workers of this machine."""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from abc import abstractmethod
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from inspect import isabstract
from multiprocessing import resource_tracker, util
from multiprocessing.connection import Connection, wait
from pathlib import Path
from signal import SIGTERM
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from gradsurgery.atomic import BusyError
from gradsurgery.data import ImageSet, cpus, open_source
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.record import Record
from gradsurgery.doors import entry_names, fault_of, is_door, load_object
from gradsurgery.errors import ArgumentError, GradsurgeryError, one_line
from gradsurgery.training import TrainingProgress, train
from gradsurgery.training.device import keep_freed_memory
from gradsurgery.training.loggers import logged
from gradsurgery.training.progress import ProgressCallback
from gradsurgery.training.run import prepare_images

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

LAUNCHERS = ("local", "ray")
ASKED_TO_END = 128 + SIGTERM
"""The exit code of a worker that was asked to end."""
_MOST = 8  # workers on processors without being asked: each has a model and an optimiser in memory
_STARTS = 3  # a worker that dies this often before its first word will not do better
_PATIENCE = 10.0  # seconds for a worker to leave its folder in order


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
    before: whether the record was there before this task began.
    """

    state: Literal["done", "busy", "failed", "lost"]
    error: str = ""
    traceback: str = ""
    before: bool = False


class Event(NamedTuple):
    """A word from a worker about one of the tasks: how far it is, or what became of it."""

    key: str
    news: TrainingProgress | Outcome


class Launcher(AbstractContextManager["Launcher"]):
    """Works on tasks; leaving it ends all work at once, which a later sweep resumes.

    workers: how many tasks at a time.

    One of your own is a subclass, named `package.module:Name`, that is called with what was asked
    for: `workers` (None where it may choose), `threads` (processors of a run) and `runs_per_gpu` (0
    for runs that use none). It has `work` called for every task, wherever.
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


def work(task: Task, report: ProgressCallback = lambda _: None) -> Outcome:
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
        before = (directory / Record.file_name).exists()
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
    return Outcome("done", before=before)


def own_launcher(name: str) -> type[Launcher]:
    """The class of `package.module:Name` or of an entry point."""
    if not is_door(name) and name not in entry_names("launcher"):
        known = ", ".join([*LAUNCHERS, *entry_names("launcher")])
        raise ArgumentError(
            f"unknown launcher {name!r}; there are {known}, and package.module:Name"
        )
    found: type[Launcher] = load_object(
        name,
        "launcher",
        fits=lambda there: (
            isinstance(there, type) and issubclass(there, Launcher) and not isabstract(there)
        ),
        expected="a subclass of gradsurgery.sweep.launcher.Launcher",
    )
    return found


def visible_gpus(device: str) -> tuple[str, ...]:
    """The GPUs that runs with the option `device` may use, as CUDA_VISIBLE_DEVICES names them.

    Raises `ArgumentError` for a device with a number: each worker sees a GPU of its own.
    """
    if device.startswith("cuda:"):
        raise ArgumentError(
            f"a sweep shares out the GPUs itself, found the device {device!r}; give cuda, and name "
            "the GPUs to use in CUDA_VISIBLE_DEVICES"
        )
    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return ()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    listed = [name for name in named.split(",") if name]
    return tuple(listed or map(str, range(torch.cuda.device_count())))


def worker_count(asked: int | None, *, gpus: int, runs_per_gpu: int, threads: int) -> int:
    """How many workers: as asked, else `runs_per_gpu` for each GPU, else as the processor has room.

    >>> worker_count(None, gpus=2, runs_per_gpu=3, threads=1)
    6
    """
    for name, value in (("workers", asked), ("threads", threads), ("runs-per-gpu", runs_per_gpu)):
        if value is not None and value < 1:
            raise ArgumentError(f"--{name} is at least 1, found {value}")
    if asked is not None:
        return asked
    if gpus:
        return gpus * runs_per_gpu
    return max(1, min(cpus() // threads, _MOST))


class LocalLauncher(Launcher):
    """`workers` processes; worker i has GPU i mod the number of GPUs to itself and its peers.

    A worker that is killed is replaced, and its task is lost. Workers end with this process,
    however it ends. Raises `GradsurgeryError` where workers cannot start.
    """

    def __init__(self, workers: int, gpus: tuple[str, ...] = ()) -> None:
        self.workers = workers
        devices = [gpus[i % len(gpus)] if gpus else None for i in range(workers)]
        self._workers = [_Worker(device) for device in devices]

    def submit(self, key: str, task: Task) -> None:
        """Hand the task to a worker that has none."""
        next(worker for worker in self._workers if worker.key is None).take(key, task)

    def wait(self, seconds: float) -> list[Event]:
        """Words and deaths of the workers."""
        by_handle = {handle: worker for worker in self._workers for handle in worker.handles}
        ready = {id(by_handle[handle]): by_handle[handle] for handle in wait(by_handle, seconds)}  # type: ignore[index]
        return [event for worker in ready.values() for event in worker.events()]

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(_PATIENCE)
            worker.process.kill()
            worker.process.join()


class _Worker:
    """One process, its connection, and the key of the task it is at."""

    def __init__(self, device: str | None) -> None:
        self._device = device
        self.key: str | None = None
        self._failed_starts = 0
        self._answered = False
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(
            target=_serve, args=(theirs, self._device), daemon=True
        )
        # Ctrl-C would end a worker amid its imports, before `_serve` ignores it.
        resource_tracker.ensure_running()  # its own start would unblock it again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    @property
    def handles(self) -> tuple[Connection, int]:
        return self.connection, self.process.sentinel

    def take(self, key: str, task: Task) -> None:
        self.key = key
        with suppress(OSError):  # it is dead: `events` will find out
            self.connection.send(task)

    def events(self) -> list[Event]:
        """What it has said; where it is dead, the loss of its task, and a new process."""
        dead = not self.process.is_alive()  # asked first: what it said before is all there then
        found: list[Event] = []
        with suppress(EOFError, OSError):
            while self.connection.poll():
                found += self._received(self.connection.recv())
        if dead:
            if self.key is not None:
                code = self.process.exitcode
                found.append(Event(self.key, Outcome("lost", f"its process ended with {code}")))
                self.key = None
            self._replace()
        return found

    def _received(self, message: TrainingProgress | Outcome | None) -> list[Event]:
        self._answered = True
        key = self.key
        if isinstance(message, Outcome):
            self.key = None
        return [] if message is None or key is None else [Event(key, message)]

    def _replace(self) -> None:
        self._failed_starts = 0 if self._answered else self._failed_starts + 1
        self._answered = False
        if self._failed_starts >= _STARTS:
            raise GradsurgeryError(
                f"the sweep's worker processes end as they start (exit code "
                f"{self.process.exitcode}); is memory short? see the messages above, or take fewer "
                "workers"
            )
        self.connection.close()
        self.process.close()
        self._start()


def _serve(connection: Connection, device: str | None) -> None:
    """What a worker process does: tasks until it is ended."""
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device  # before torch looks for them
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's business
    signal.signal(signal.SIGTERM, _end)
    sys.unraisablehook = _end_or_say
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()  # before torch allocates anything

    def send(message: Any) -> None:
        with suppress(BrokenPipeError):  # the launcher is gone, and this process about to end
            connection.send(message)

    try:
        send(None)
        while True:
            task: Task = connection.recv()
            send(work(task, send))
    except EOFError:
        return
    except SystemExit:  # the run's folder is in order
        util._run_finalizers(0)  # type: ignore[attr-defined]  # locks that libraries share out
        os._exit(ASKED_TO_END)  # at once: torch leaves much to do, amid which signals would tell


def _end(*_: object) -> None:
    """Leave the run's folder in order, and this process; a second signal changes nothing."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(ASKED_TO_END)


def _end_or_say(error: "sys.UnraisableHookArgs") -> None:
    """Python would go on where the signal came amid what cannot raise, as a finaliser."""
    if error.exc_type is SystemExit:
        os._exit(ASKED_TO_END)
    sys.__unraisablehook__(error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
