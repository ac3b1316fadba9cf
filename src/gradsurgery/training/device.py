"""What a run computes with: device, precision, threads, memory; and all of it by name."""

import ctypes
import platform
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradsurgery import __version__
from gradsurgery.documents.configuration import Precision, RunConfiguration
from gradsurgery.errors import ArgumentError, check_kind

_LIBRARIES = ("torch", "torchvision", "timm", "numpy", "safetensors")

AutocastFactory = Callable[[], AbstractContextManager[Any]]

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4

# Why a run may have no CUDA graph, whether that is seen before it or on its way.
NO_GPU = "there is no GPU"
SCALES_LOSSES = "float16 adapts the scale of its losses on the processor"
VARIES = "{method} may compute another thing at every step"


def resolve_device(name: str) -> torch.device:
    """The device called `name`; "auto" is cuda where there is one, else cpu.

    Apple's mps is left out: it has no float64, in which gradients are compared and summed.

    Raises `ArgumentError` where torch knows no such device or this machine has none.
    """
    check_kind("device", name, str, "auto, cpu or cuda")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ArgumentError(
            f"device {name!r} cannot be used ({reason}); choose auto, cpu or cuda"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise ArgumentError(f"device {name!r} cannot train; choose auto, cpu or cuda")
    return device


def device_of(configuration: RunConfiguration) -> torch.device:
    """The run's device; raises `ArgumentError` also where it has not what the run asks of it."""
    device = resolve_device(configuration.device)
    if configuration.cuda_graph == "on" and device.type != "cuda":
        raise no_graph(NO_GPU)
    return device


def no_graph(reason: str) -> ArgumentError:
    """The error of a run that is to replay its steps and cannot."""
    return ArgumentError(
        f"--cuda-graph on cannot be had: {reason}; leave it at auto, which then takes the steps "
        "one by one"
    )


def autocast_factory(device: torch.device, precision: Precision) -> AutocastFactory:
    """A factory of the contexts the forward passes run in."""
    if precision in ("float32", "tf32", "ieee"):
        return nullcontext
    return partial(torch.autocast, device.type, dtype=getattr(torch, precision))


def loss_scaler(device: torch.device, precision: Precision) -> torch.amp.GradScaler | None:
    """float16 has too small a range for gradients: their loss is scaled, here and only here."""
    return torch.amp.GradScaler(device.type) if precision == "float16" else None


@contextmanager
def float32_products(device: torch.device, precision: Precision) -> Iterator[None]:
    """Inside, products of float32 on a GPU are what `precision` says, whatever torch is set to.

    "tf32" takes TF32 for all of them, "ieee" float32; every other, as torch by itself, TF32 in
    convolutions and float32 elsewhere. Afterwards the settings are what they were.
    """
    tf32 = precision == "tf32" and device.type == "cuda"
    tf32_convolutions = precision != "ieee" and device.type == "cuda"
    backends: Any = torch.backends
    places = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    before = [place.fp32_precision for place in places]
    # torch has an older way to say the same, and raises where the two differ as it looks there.
    try:
        with warnings.catch_warnings():  # torch 2.9 wants to be asked in one way, which others lack
            warnings.filterwarnings("ignore", "Please use the new API settings", UserWarning)
            matmul, convolutions = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    except RuntimeError:
        matmul, convolutions = "highest", True
    try:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        backends.cudnn.allow_tf32 = tf32_convolutions
        for place, allowed in zip(places, (tf32, *[tf32_convolutions] * 2), strict=True):
            place.fp32_precision = "tf32" if allowed else "ieee"
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        backends.cudnn.allow_tf32 = convolutions
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


def stores_channels_last(
    configuration: RunConfiguration, device: torch.device, model: nn.Module
) -> bool:
    """Whether weights and images lie channels last in the device's memory.

    "auto" says yes where a GPU's tensor cores work on the weights of convolutions.
    """
    if configuration.channels_last != "auto":
        return configuration.channels_last == "on"
    reduced = device.type == "cuda" and configuration.precision not in ("float32", "ieee")
    return reduced and any(parameter.dim() == 4 for parameter in model.parameters())


@contextmanager
def computing_with(
    threads: int | None, device: torch.device, precision: Precision
) -> Iterator[int]:
    """Inside, torch computes with so many threads of the processor; None leaves them as they are.

    `device` is the current one, on which kernels start, and multiplies as `precision` says; numbers
    are float32 unless it is said. Gives the number of threads.
    """
    own, default = torch.get_num_threads(), torch.get_default_dtype()
    current = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    torch.set_num_threads(threads or own)
    torch.set_default_dtype(torch.float32)
    try:
        with current, float32_products(device, precision):
            yield threads or own
    finally:
        torch.set_num_threads(own)
        torch.set_default_dtype(default)


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Leave torch's global random state and cuDNN's choice of algorithms as they were."""
    devices = [device] if device.type == "cuda" else []
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        torch.backends.cudnn.deterministic = before


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


def keep_freed_memory() -> bool:
    """Let glibc reuse freed memory: no large block gets pages of its own, none is trimmed.

    A training step allocates the same large tensors again and again; by default each comes from
    the kernel as untouched pages, and faulting those in costs more than some of the arithmetic.
    Returns whether the settings were accepted: False where the C library is another.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # -1 is the largest threshold: glibc reads it as an unsigned size.
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))


def environment(device: torch.device) -> dict[str, str | int | bool | None]:
    """Versions, device, threads and platform, and the commit of the current directory.

    `git_dirty` says whether tracked files differ from the commit: files that a run itself writes
    are not counted. The version of a library that is not installed, but lies on the path, is None.
    """
    here = Path.cwd()
    commit = _git(here, "rev-parse", "HEAD")
    changes = _git(here, "status", "--porcelain", "--untracked-files=no") if commit else None
    return {
        **versions_and_device(device),
        "git_commit": commit or None,
        "git_dirty": None if changes is None else bool(changes),
    }


def versions_and_device(device: torch.device) -> dict[str, str | int | None]:
    """The versions of what computes, and on what: device, threads and platform."""
    card = f": {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return {
        "gradsurgery": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in _LIBRARIES},
        "device": device.type + card,
        "threads": torch.get_num_threads(),
        "platform": f"{sys.platform}-{platform.machine()}",
    }


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _git(directory: Path, *arguments: str) -> str | None:
    """Output of a git command; None without git or outside a repository."""
    command = ["git", "-C", str(directory), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
