"""Processes that share a cache take turns at writing."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; wait for other processes and threads that hold it.

    The system releases the lock of a process that dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock file `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def remove_stale(cache: Path, own: str) -> None:
    """Remove what killed processes left behind; `own` is the entry whose lock the caller holds."""
    for temporary in cache.glob(".*.tmp"):
        digest = temporary.name.split(".")[1]
        if digest == own or not is_held(lock_path(cache, digest)):
            shutil.rmtree(temporary, ignore_errors=True)


def lock_path(cache: Path, name: str) -> Path:
    """The lock file of the entry or index called `name`."""
    return cache / "locks" / f"{name}.lock"
