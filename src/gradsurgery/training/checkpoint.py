"""A run's state on disk, complete at every moment.

The best model so far has a file of its own, `best-<step>.safetensors`, so that a checkpoint costs
no more than what changed. It is written before the checkpoint that names it, and its predecessor
is removed after: whenever the process dies, the checkpoint and the file it names are whole.
"""

import hashlib
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradsurgery.atomic import atomic_file
from gradsurgery.documents.configuration import RunConfiguration, upgraded_configuration
from gradsurgery.documents.record import ConflictLog, Curves
from gradsurgery.errors import GradsurgeryError, OutputError

CHECKPOINT_FILE = "checkpoint.pt"
_BEST_FILE = re.compile(r"best-\d+\.safetensors")
_VERSION = 3

Weights = dict[str, Tensor]


class CheckpointError(GradsurgeryError):
    """A checkpoint cannot be continued from."""


@dataclass
class Checkpoint:
    """All that a run needs to go on; every random number comes from its step's own seed.

    Args:
        configuration: the run's.
        data_digest: of the image set.
        split_digest: of the split.
        step: steps done.
        learner: states of model, optimiser, loss scaler and algorithm.
        curves: the validations so far.
        conflict: what was logged of the domains' conflict so far, where the run logs it.
        best: weights of the best model so far; None before the first validation, and where the
            run's average selects the model.
        best_digest: sha256 of the file they are in, "" where there is none.
        seconds: spent so far.
        step_seconds: spent so far in steps alone.
        wait_seconds: of these, spent without images to compute on.
    """

    configuration: RunConfiguration
    data_digest: str
    split_digest: str
    step: int = 0
    learner: dict[str, Any] = field(default_factory=dict)
    curves: Curves = field(default_factory=Curves)
    conflict: ConflictLog = field(default_factory=ConflictLog)
    best: Weights | None = None
    best_digest: str = ""
    seconds: float = 0.0
    step_seconds: float = 0.0
    wait_seconds: float = 0.0

    def took(self, seconds: float, waited: float) -> None:
        """Add what steps have taken, and how much of it went by without images."""
        self.step_seconds += seconds
        self.wait_seconds += waited

    @property
    def data_wait(self) -> float:
        """Fraction of the steps' time that passed without images to compute on."""
        return self.wait_seconds / self.step_seconds if self.step_seconds else 0.0

    @property
    def best_step(self) -> int:
        """Step of the best model."""
        return self.curves.step[self.curves.best()]


def save_checkpoint(checkpoint: Checkpoint, directory: Path) -> None:
    """Write the best model where it is a new one, then the checkpoint, then drop the old model.

    Raises `OutputError`; the checkpoint before stays in place then.
    """
    best = directory / f"best-{checkpoint.best_step}.safetensors"
    if not best.exists() and checkpoint.best is not None:
        save_weights(checkpoint.best, best)
        checkpoint.best_digest = _digest(best)
    content = {
        "version": _VERSION,
        "configuration": checkpoint.configuration.model_dump(),
        "data_digest": checkpoint.data_digest,
        "split_digest": checkpoint.split_digest,
        "step": checkpoint.step,
        "learner": checkpoint.learner,
        "curves": checkpoint.curves.model_dump(),
        "conflict": checkpoint.conflict.model_dump(),
        "best_digest": checkpoint.best_digest,
        "seconds": checkpoint.seconds,
        "step_seconds": checkpoint.step_seconds,
        "wait_seconds": checkpoint.wait_seconds,
    }
    path = directory / CHECKPOINT_FILE
    with _explained(path), atomic_file(path) as temporary:
        torch.save(content, temporary)
    _remove_models(directory, keep=best)


def load_checkpoint(directory: Path) -> Checkpoint | None:
    """The checkpoint in `directory`, on the CPU, or None where there is none.

    Models that no checkpoint names are removed. Raises `CheckpointError` where a file is damaged:
    every byte is checked against the checksums written with it.
    """
    path = directory / CHECKPOINT_FILE
    if not path.exists():
        _remove_models(directory)
        return None
    try:
        content = _read(path)
        best_digest = content.pop("best_digest")
        content = upgraded_configuration(content)
        parts = {"configuration": RunConfiguration, "curves": Curves, "conflict": ConflictLog}
        checkpoint = Checkpoint(
            **{name: part(**content.pop(name)) for name, part in parts.items()},
            best_digest=best_digest,
            **content,
        )
    except Exception as error:  # damaged bytes lead an unpickler to errors of any kind
        raise _damaged(path, error) from error
    best = directory / f"best-{checkpoint.best_step}.safetensors"
    if best_digest:
        checkpoint.best = _load_best(best, best_digest)
    _remove_models(directory, keep=best)
    return checkpoint


def remove_checkpoint(directory: Path) -> None:
    """Remove the checkpoint, then the model that it names."""
    (directory / CHECKPOINT_FILE).unlink(missing_ok=True)
    _remove_models(directory)


def save_weights(weights: Weights, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file; raises `OutputError`."""
    from safetensors.torch import save_file

    tensors = {name: value.cpu().contiguous() for name, value in weights.items()}
    with _explained(path), atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata)


def _read(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:  # torch writes checksums and does not read them
        broken = archive.testzip()
    if broken is not None:
        raise ValueError(f"checksum of {broken}")
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if content.pop("version") != _VERSION:
        raise ValueError("another version")
    return content


def _load_best(path: Path, digest: str) -> Weights:
    from safetensors.torch import load_file

    try:
        if _digest(path) != digest:
            raise ValueError("checksum")
        weights: Weights = load_file(path)
    except Exception as error:
        raise _damaged(path, error) from error
    return weights


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_models(directory: Path, keep: Path | None = None) -> None:
    for path in directory.glob("best-*.safetensors"):
        if path != keep and _BEST_FILE.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return CheckpointError(
        f"{path} is damaged ({reason}) and cannot be continued from; "
        f"delete {path.parent} and start the run again"
    )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Torch and safetensors have errors of their own for a file system that refuses."""
    from safetensors import SafetensorError

    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise OutputError(
            f"cannot write {path}: {reason}; is the disk full? free some space and repeat"
        ) from error
