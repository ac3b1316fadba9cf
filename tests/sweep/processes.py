"""Sweeps as real processes, and the processes they start."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SWEEP = [sys.executable, "-m", "gradsurgery", "sweep", "rotated-digits", "--device", "cpu"]


def children(pid: int) -> dict[int, str]:
    """The processes that `pid` has started, and theirs, with their command lines (Linux)."""
    parents, commands = {}, {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            after_name = (process / "stat").read_text().rpartition(")")[2].split()
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has just ended
            continue
        parents[int(process.name)], commands[int(process.name)] = int(after_name[1]), command
    found: dict[int, str] = {}
    while more := {p for p, parent in parents.items() if parent in {pid, *found}} - set(found):
        found |= {process: commands[process] for process in more}
    return found


def workers(pid: int) -> list[int]:
    """The worker processes of the sweep `pid`, local ones or Ray's."""
    return [
        process
        for process, command in children(pid).items()
        if "spawn_main" in command or command.startswith("ray::_work")
    ]


def kill(pid: int) -> None:
    """kill -9, if it is still there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@contextmanager
def started(arguments: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A sweep in a session of its own, whose output goes to `log`; no process of it is left."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            arguments,
            stdout=file,
            stderr=file,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            cwd=log.parent,  # no repository, whose commit would be in the records
        )
    try:
        yield process
    finally:
        left = children(process.pid)
        kill(process.pid)
        process.wait()
        for pid in left:
            kill(pid)


def until(condition: Any, seconds: float = 120.0) -> None:
    """Wait until `condition()` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def results(folder: Path) -> dict[str, Any]:
    """Every file of the runs of a sweep, records without their cost."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.parent == folder:
            continue
        name = str(path.relative_to(folder))
        if path.name == "record.json":
            found[name] = {k: v for k, v in json.loads(path.read_text()).items() if k != "cost"}
        else:
            found[name] = path.read_bytes()
    return found


def records(folder: Path) -> int:
    """How many runs are finished."""
    return len(list(folder.rglob("record.json")))
