"""Files and folders appear whole or not at all, and one process at a time works in a folder."""

import errno
import glob
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from gradsurgery.errors import OutputError

_LOCK_FILE = ".lock"
_SHARED_FILE = ".shared.lock"
_SETTLED = 600.0  # seconds
_SOON, _LOOK = 30.0, 0.05  # seconds
_LEFTOVER = re.compile(
    r"\.((record|configuration|split|failure)\.json|checkpoint\.pt|(model|best-\d+)\.safetensors)\.\d+\.tmp"
    r"|\.tmp[0-9A-Za-z]{6}"  # safetensors' own, on its way to one of ours
)


class BusyError(OutputError):
    """Another process is working in the folder."""


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it to `path`.

    The file gets the permissions of a new file, whatever those are that its writer gave it.
    Raises `OutputError` where the file system refuses (full, read-only, no permission); the
    temporary file is removed on any failure, and by the next writer where the process was killed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        temporary.touch()
        permissions = temporary.stat().st_mode & 0o777
        yield temporary
        temporary.chmod(permissions)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8, whole or not at all; raises `OutputError`."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """As `atomic_file`, for a folder; where `path` already exists it is kept as it is."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if not path.exists():
            temporary.rename(path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def output_error(path: Path, error: OSError) -> OutputError:
    """Say in one line why `path` could not be written, and what to do."""
    if error.errno == errno.ENOSPC:
        return OutputError(f"cannot write {path}: the disk is full; free some space and repeat")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(f"cannot write {path}: no permission; choose a folder you may write to")
    why = error.strerror or error
    if error.errno == errno.EEXIST:  # of a folder that was to be made
        why = f"{error.filename or path} is no folder"
    return OutputError(f"cannot write {path}: {why}; choose another place")


def expanded(place: str | os.PathLike[str]) -> Path:
    """The path with ~ and ~user written out; as it is where there is no such user."""
    return Path(os.path.expanduser(place))  # noqa: PTH111, Path's raises


def check_folder(directory: Path) -> None:
    """Raise `OutputError` where files cannot be written into `directory`, as far as can be seen.

    For work that writes in the end what it would be a pity to have computed in vain. Nothing is
    made: another process may be about to.
    """
    try:
        for place in (directory, *directory.parents):
            try:
                mode = place.stat().st_mode
            except (FileNotFoundError, NotADirectoryError):
                if place.is_symlink():
                    raise
                continue
            if not stat.S_ISDIR(mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            if not os.access(place, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
    except OSError as error:
        raise output_error(directory, error) from error


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Create `directory` and hold it against every other process.

    The lock goes with the process, however it ends. Folders made here that stay empty are removed
    again. Raises `BusyError` where another process holds it, `OutputError` where it is not
    writable.
    """
    made: list[Path] = []
    try:
        made += _absent(directory)
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


def remove_lock(directory: Path) -> None:
    """Remove the lock on `directory` of a process that was ended, if there is one."""
    if (directory / _LOCK_FILE).exists():
        with suppress(OutputError), claimed(directory):
            pass


@contextmanager
def shared(directory: Path, enter: Callable[[bool], None]) -> Iterator[None]:
    """Create `directory` and work in it beside other processes that do.

    enter: called at first, by one process at a time, with whether no other works there.

    Raises as `claimed` and `enter` do.
    """
    import fcntl

    path = directory / _SHARED_FILE
    with _claimed_soon(directory):
        try:
            presence = _opened_lock(path)
        except OSError as error:
            raise output_error(path, error) from error
        alone = _holds_alone(presence)
        try:
            enter(alone)
            fcntl.flock(presence, fcntl.LOCK_SH)
        except BaseException:
            if alone:
                path.unlink(missing_ok=True)
            os.close(presence)
            raise
    try:
        yield
    finally:
        with suppress(OutputError), claimed(directory):  # another process may be entering
            if _holds_alone(presence) and _is_still(path, presence):
                path.unlink()
        os.close(presence)


@contextmanager
def _claimed_soon(directory: Path) -> Iterator[None]:
    """As `claimed`, where the other process may be done with it in seconds."""
    until = time.monotonic() + _SOON
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(claimed(directory))
            except BusyError:
                if time.monotonic() > until:
                    raise
                time.sleep(_LOOK)
            else:
                break
        yield


def _holds_alone(lock: int) -> bool:
    """Whether no other process holds the lock on this file descriptor, which is ours then."""
    import fcntl  # which Windows has not, where whole files are written as well

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return False
    return True


def _locked(path: Path) -> int:
    """File descriptor that holds the lock on `path`, which is removed when it is let go.

    Not by `filelock`: most of its versions take a lock on a file that another process has removed
    in the meantime for a lock, and two processes would work in one folder.
    """
    while True:
        lock = _opened_lock(path)
        try:
            if not _holds_alone(lock):
                raise BusyError(
                    f"another process is working in {path.parent}; "
                    "wait for it to end, or choose another output folder (--out)"
                )
        except OSError:
            os.close(lock)
            raise
        # The former holder may have removed the file between our opening and locking it.
        if _is_still(path, lock):
            return lock
        os.close(lock)


def _opened_lock(path: Path) -> int:
    """File descriptor of the file, which is made where it is not there; open to whom umask says."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _is_still(path: Path, opened: int) -> bool:
    """Whether `path` is the file on this file descriptor, and not removed or another since."""
    try:
        return os.path.samestat(os.fstat(opened), path.stat())
    except FileNotFoundError:
        return False


def _remove_leftovers(directory: Path) -> None:
    """Remove what a killed process was writing."""
    for path in directory.glob(".*tmp*"):
        if _LEFTOVER.fullmatch(path.name):
            path.unlink()


def _remove_abandoned(path: Path) -> None:
    """Remove what a process that is gone was writing in place of `path`.

    That of the last minutes may be another machine's, whose processes are not known here.
    """
    if os.name != "posix":  # elsewhere one cannot ask for a process without harm
        return
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        number = left.name.rpartition(".tmp")[0].rpartition(".")[2]
        with suppress(OSError):
            if number.isdecimal() and time.time() - left.stat().st_mtime > _SETTLED:
                try:
                    os.kill(int(number), 0)
                except ProcessLookupError:
                    left.unlink()


def _absent(directory: Path) -> list[Path]:
    """The folder and those above it that are not there, from the innermost on."""
    return [path for path in (directory, *directory.parents) if not path.exists()]


def _remove_empty(directories: list[Path]) -> None:
    for path in directories:
        with suppress(OSError):
            path.rmdir()
