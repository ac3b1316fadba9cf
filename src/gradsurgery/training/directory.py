"""The folder of one run: claimed by one process, never left half made."""

import errno
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gradsurgery.atomic import output_error
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.errors import ArgumentError, OutputError


class BusyError(OutputError):
    """Another process is working on the run."""


_LOCK_FILE = ".lock"
_UNSAFE = re.compile(r"^\.|[/\\\x00-\x1f\x7f]|%(?=[0-9A-F]{2})")
_LONGEST = 100  # bytes; file systems take 255, with what is appended to it


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Create `directory` and hold it against every other process.

    The lock goes with the process, however it ends. Folders made here that stay empty are removed
    again. Raises `BusyError` where another process holds it, `OutputError` where it is not
    writable.
    """
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = _locked(directory / _LOCK_FILE)
    except OSError as error:
        _remove_empty(made)
        raise output_error(directory, error) from error
    try:
        _remove_leftovers(directory)
        yield
    finally:
        with suppress(OSError):
            (directory / _LOCK_FILE).unlink()
        os.close(lock)
        _remove_empty(made)


def folder_name(name: str) -> str:
    """The name of a domain, a data set or a method as that of one folder.

    Different names have different folders. What no folder's name may have, or what would hide it,
    is written as % and two digits, and a long name ends in the hash of it.

    >>> folder_name("a/b"), folder_name(".."), folder_name("v1.0"), folder_name("-90%")
    ('a%2Fb', '%2E.', 'v1.0', '-90%')
    """
    safe = _UNSAFE.sub(lambda match: f"%{ord(match.group()):02X}", name)
    if len(os.fsencode(safe)) <= _LONGEST:
        return safe
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return f"{os.fsencode(safe)[:_LONGEST].decode(errors='ignore')}-{digest}"


def check_same(
    requested: RunConfiguration, found: RunConfiguration, directory: Path, *also: str
) -> None:
    """Raise `ArgumentError` where `directory` holds a run of other options.

    Where it is worked on (the data's folder, device, threads) counts only where `also` names it.
    """
    different = requested.differences(found, *also)
    if different:
        listed = ", ".join(
            f"{k}: {old!r} there, {new!r} here" for k, (new, old) in different.items()
        )
        raise ArgumentError(
            f"{directory} holds a run with other options ({listed}); "
            "choose another output folder, or delete this one"
        )


def is_longer(requested: RunConfiguration, found: RunConfiguration) -> bool:
    """Whether what is requested is the run that was found, with more iterations."""
    differing = requested.differences(found)
    return set(differing) == {"iterations"} and requested.iterations > found.iterations


def _locked(path: Path) -> int:
    """File descriptor that holds the lock on `path`, which is removed when it is let go.

    Not by `filelock`: most of its versions take a lock on a file that another process has removed
    in the meantime for a lock, and two processes would work in one folder.
    """
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise BusyError(
                    f"another process is working in {path.parent}; "
                    "wait for it to end, or choose another output folder"
                ) from error
            raise
        # The former holder may have removed the file between our opening and locking it.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), path.stat()):
                return lock
        os.close(lock)


_LEFTOVER = re.compile(
    r"\.((record|configuration|split|failure)\.json|checkpoint\.pt|(model|best-\d+)\.safetensors)\.\d+\.tmp"
)


def _remove_leftovers(directory: Path) -> None:
    """Remove what a killed process was writing."""
    for path in directory.glob(".*.tmp"):
        if _LEFTOVER.fullmatch(path.name):
            path.unlink()


def _remove_empty(directories: list[Path]) -> None:
    for path in directories:
        with suppress(OSError):
            path.rmdir()
