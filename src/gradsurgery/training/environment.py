"""Where a run took place: versions, device, threads, and the user's own commit."""

import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import torch

from gradsurgery import __version__

_LIBRARIES = ("torch", "torchvision", "timm", "numpy", "safetensors")


def describe_environment(device: torch.device) -> dict[str, str | int | bool | None]:
    """Versions, device, threads and platform, and the commit of the current directory.

    `git_dirty` says whether tracked files differ from the commit: files that a run itself writes
    are not counted.
    """
    here = Path.cwd()
    commit = _git(here, "rev-parse", "HEAD")
    changes = _git(here, "status", "--porcelain", "--untracked-files=no") if commit else None
    return {
        "gradsurgery": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in _LIBRARIES},
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        "platform": f"{sys.platform}-{platform.machine()}",
        "git_commit": commit or None,
        "git_dirty": None if changes is None else bool(changes),
    }


@contextmanager
def computing_with(threads: int | None) -> Iterator[int]:
    """Inside, torch computes with so many threads of the processor; None leaves them as they are.

    Gives the number.
    """
    own = torch.get_num_threads()
    torch.set_num_threads(threads or own)
    try:
        yield threads or own
    finally:
        torch.set_num_threads(own)


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_bytes` count from here on, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # other systems than Linux, and sandboxes
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory in use at once: the device's own on CUDA, else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where the mark can be set back
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return device.type


def _git(directory: Path, *arguments: str) -> str | None:
    """Output of a git command; None without git or outside a repository."""
    command = ["git", "-C", str(directory), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
