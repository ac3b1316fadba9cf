"""Where runs can be worked on: this machine's processors and GPUs."""

import os

from gradsurgery.errors import ArgumentError

_MOST = 8  # workers on processors without being asked: each has a model and an optimiser in memory


def visible_gpus(device: str) -> tuple[str, ...]:
    """The GPUs that runs with the option `device` may use, as CUDA_VISIBLE_DEVICES names them.

    Raises `ArgumentError` for a device with a number: each worker sees a GPU of its own.
    """
    import torch

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
    return max(1, min((os.cpu_count() or 1) // threads, _MOST))
