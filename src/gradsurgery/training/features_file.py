"""What frozen layers make of images, kept beside the decoded images for the next command."""

import hashlib
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, final

import torch
from filelock import Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gradsurgery.atomic import atomic_file
from gradsurgery.data.image_set import folder_lock
from gradsurgery.errors import OutputError, suppress_out_of_memory
from gradsurgery.training.device import versions_and_device

MOST_FILES = 8
"""Of a set of images; the one that was used last is kept, the one before longest goes."""

_NAME = "features"


@final
@dataclass(frozen=True)
class FeaturesFile:
    """`features-*.safetensors` in the cache's folder of the images, named by all it follows from.

    A cache that may only be read, or is full, keeps none: they are computed again.
    """

    folder: Path
    key: tuple[Any, ...]
    device: torch.device

    @property
    def path(self) -> Path:
        """Another one for other libraries, and on another kind of processor: bits may differ."""
        follows_from = repr((*self.key, versions_and_device(self.device), _processor()))
        digest = hashlib.sha256(follows_from.encode()).hexdigest()
        return self.folder / f"{_NAME}-{digest}.safetensors"

    @contextmanager
    def in_turn(self, wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Inside, no other process computes the same features; `wait` is called where one does."""
        lock = partial(folder_lock, self.folder.parent, self.path.stem)
        with ExitStack() as stack:
            try:
                stack.enter_context(lock(timeout=0.0))
            except Timeout:  # an OSError too
                wait()
                with suppress(OSError, NotImplementedError):
                    stack.enter_context(lock())
            except (OSError, NotImplementedError):
                pass  # the cache may only be read, or its file system has no locks
            yield

    def read(self) -> Tensor | None:
        """The features; None where there are none, or they are damaged."""
        path = self.path
        try:
            features = load_file(path, device=str(self.device))[_NAME]
        except (OSError, SafetensorError, KeyError):
            return None
        with suppress(OSError):
            os.utime(path)  # what is kept longest
        return features

    def write(self, features: Tensor) -> None:
        """Keep them, in one's turn, and as many others of these images as there may be."""
        if not self.folder.exists():  # other images have taken their place meanwhile
            return
        path = self.path
        # safetensors has an error of its own for a full disk; some versions of it make a copy
        with suppress(OSError, OutputError, SafetensorError), suppress_out_of_memory():
            for left in self.folder.glob(f".{path.name}.*.tmp"):  # by one that was killed
                left.unlink()
            with atomic_file(path) as temporary:
                save_file({_NAME: features.contiguous()}, temporary)
            files = self.folder.glob(f"{_NAME}-*.safetensors")
            for old in sorted(files, key=lambda file: -file.stat().st_mtime_ns)[MOST_FILES:]:
                old.unlink()


@cache
def _processor() -> str:
    """What the processor calls itself, as far as the system tells."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line
    return platform.processor()
