"""Where a run took place: versions, device, threads, and the user's own commit."""

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from gradsurgery import __version__

_LIBRARIES = ("torch", "torchvision", "timm", "numpy", "safetensors")


def describe_environment(device: torch.device) -> dict[str, str | int | bool | None]:
    """Versions, device, threads and platform, and the commit of the current directory.

    `git_dirty` says whether tracked files differ from the commit: files that a run itself writes
    are not counted. The version of a library that is not installed, but lies on the path, is None.
    """
    here = Path.cwd()
    commit = _git(here, "rev-parse", "HEAD")
    changes = _git(here, "status", "--porcelain", "--untracked-files=no") if commit else None
    return {
        "gradsurgery": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in _LIBRARIES},
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        "platform": f"{sys.platform}-{platform.machine()}",
        "git_commit": commit or None,
        "git_dirty": None if changes is None else bool(changes),
    }


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


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
