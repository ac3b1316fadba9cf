"""A run's state on disk, complete at every moment.

The best model so far has a file of its own, `best-<step>.safetensors`, so that a checkpoint costs
no more than what changed. It is written before the checkpoint that names it, and its predecessor
is removed after: whenever the process dies, the checkpoint and the file it names are whole.
"""

import hashlib
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from gradsurgery.atomic import atomic_file, claimed
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.document import Part, complaint
from gradsurgery.documents.record import ConflictLog, Curves, Record
from gradsurgery.errors import ArgumentError, GradsurgeryError, OutputError, one_line
from gradsurgery.training.averaging import Weights
from gradsurgery.training.images_used import ImagesUsed
from gradsurgery.training.learner import Learner
from gradsurgery.training.progress import ProgressCallback, TrainingProgress

CHECKPOINT_FILE = "checkpoint.pt"
_BEST_FILE = re.compile(r"best-\d+\.safetensors")
_VERSION = 4
_UNSIGNED = 3
"""The version before, which had no `outline`."""
_FEW = 64
"""Numbers of a tensor that are all in the outline; of larger ones it has type and shape."""


class CheckpointError(GradsurgeryError):
    """A checkpoint cannot be continued from."""


class Checkpoint(Part):
    """All that a run needs to go on; every random number comes from its step's own seed.

    Args:
        configuration: the run's.
        data_digest: of the image set.
        split_digest: of the split.
        objects: code from outside of this software that the steps ran, in each of its versions.
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

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    configuration: RunConfiguration
    data_digest: str
    split_digest: str
    objects: list[dict[str, str | None]] = Field(default_factory=list)
    step: int = Field(default=0, ge=0)
    learner: dict[str, Any] = Field(default_factory=dict)
    curves: Curves = Field(default_factory=Curves)
    conflict: ConflictLog = Field(default_factory=ConflictLog)
    best: Weights | None = Field(default=None, exclude=True)
    best_digest: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    seconds: float = Field(default=0.0, ge=0)
    step_seconds: float = Field(default=0.0, ge=0)
    wait_seconds: float = Field(default=0.0, ge=0)

    def took(self, seconds: float, waited: float) -> None:
        """Add what steps have taken, and how much of it went by without images."""
        self.step_seconds += seconds
        self.wait_seconds += waited

    @property
    def data_wait(self) -> float:
        """Fraction of the steps' time that passed without images to compute on."""
        return min(1.0, self.wait_seconds / self.step_seconds) if self.step_seconds else 0.0

    @property
    def best_step(self) -> int:
        """Step of the best model."""
        return self.curves.step[self.curves.best()]

    @model_validator(mode="after")
    def _of_its_steps(self) -> "Checkpoint":
        """Curves and log have the steps that a run of this configuration has at `step`."""
        options, done = self.configuration, range(1, self.step + 1)
        last, every, logged = options.iterations, options.validate_every, options.log_conflict
        validations = [step for step in done if step % every == 0 or step == last]
        logs = [step for step in done if logged and step % logged == 0]
        if self.step > last or self.curves.step != validations or self.conflict.step != logs:
            raise ValueError(f"its curves or its log are not those of a run at step {self.step}")
        return self


def save_checkpoint(checkpoint: Checkpoint, directory: Path) -> None:
    """Write the best model where it is a new one, then the checkpoint, then drop the old model.

    Raises `OutputError`; the checkpoint before stays in place then.
    """
    best = directory / f"best-{checkpoint.best_step}.safetensors"
    if not best.exists() and checkpoint.best is not None:
        save_weights(checkpoint.best, best)
        checkpoint.best_digest = _digest(best)
    # `dict` and not `model_dump`, which copies the learner's state
    content = {"version": _VERSION, **dict(checkpoint)}
    del content["best"]
    for name in ("configuration", "curves", "conflict"):
        content[name] = content[name].model_dump()
    content["outline"] = outline(content)
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
        checkpoint = Checkpoint.model_validate(_read(path), strict=True)
        best = directory / f"best-{checkpoint.best_step}.safetensors"
    except Exception as error:  # damaged bytes lead an unpickler to errors of any kind
        raise _damaged(path, error) from error
    if checkpoint.best_digest:
        checkpoint.best = _load_best(best, checkpoint.best_digest)
    _remove_models(directory, keep=best)
    return checkpoint


def continued(
    configuration: RunConfiguration, directory: Path, report: ProgressCallback
) -> Checkpoint | None:
    """The checkpoint that the run goes on from; None where it begins, as `report` is told why.

    One of the same run with fewer iterations does where that run up to there is the longer one's
    beginning. Raises as `load_checkpoint`, and `ArgumentError` where it is of another run.
    """
    checkpoint = load_checkpoint(directory)
    reason = "its last checkpoint was not kept (--keep-checkpoint)"
    if checkpoint is not None:
        longer = is_longer(configuration, checkpoint.configuration)
        reason = _no_beginning(checkpoint)
        if not longer or (reason and not (directory / Record.file_name).exists()):
            check_same(configuration, checkpoint.configuration, directory)
        if not longer or not reason:
            return checkpoint
        remove_checkpoint(directory)
    if (directory / Record.file_name).exists():
        line = f"the steps of the finished run are taken again: {reason}"
        report(TrainingProgress("training", 0, configuration.iterations, note=line))
    return None


def check_same(
    requested: RunConfiguration, found: RunConfiguration, directory: Path, *also: str
) -> None:
    """Raise `ArgumentError` where `directory` holds a run of other options.

    Where it is worked on (the data's folder, device, threads) counts only where `also` names it.
    """
    refuse_others(directory, "a run", requested.differences(found, *also))


def refuse_others(directory: Path, what: str, different: Mapping[str, tuple[Any, Any]]) -> None:
    """Raise `ArgumentError` where options of what `directory` holds are others: here, there."""
    if different:
        listed = (
            f"{k}: {old!r:.200} there, {new!r:.200} here" for k, (new, old) in different.items()
        )
        raise ArgumentError(
            f"{directory} holds {what} with other options ({', '.join(listed)}); choose another "
            "output folder (--out), or delete this one"
        )


def is_longer(requested: RunConfiguration, found: RunConfiguration) -> bool:
    """Whether what is requested is the run that was found, with more iterations."""
    differing = requested.differences(found)
    return set(differing) == {"iterations"} and requested.iterations > found.iterations


def _no_beginning(checkpoint: Checkpoint) -> str:
    """Why a run of more iterations is another one from the start, or "" where it is not."""
    if checkpoint.configuration.schedule != "constant":
        return "the learning rate follows the number of iterations"
    if checkpoint.step % checkpoint.configuration.validate_every:
        return f"step {checkpoint.step} was validated as the last, and would not have been"
    return ""


def restore_learner(
    learner: Learner, checkpoint: Checkpoint, used: ImagesUsed, directory: Path
) -> None:
    """Put the learner where the checkpoint says.

    Raises `CheckpointError` where it cannot go, or the images or their split are other ones.
    """
    then = checkpoint.data_digest, checkpoint.split_digest
    if changed := changed_data(used.images.name, then, (used.images.digest, used.split.digest)):
        raise CheckpointError(
            f"{changed} since the run in {directory} began; "
            "bring back what it was, or delete the folder and start again"
        )
    try:
        learner.restore(checkpoint.learner)
        if learner.average.selects == (checkpoint.best is not None):
            raise ValueError("it names no best model, or one too many")
    except Exception as error:  # each library, and anybody's method, has errors of its own
        raise _damaged(directory / CHECKPOINT_FILE, error) from error


def changed_data(name: str, then: tuple[str, str], now: tuple[str, str]) -> str:
    """What has changed of a data set, by the digests of its images and its split; "" if nothing."""
    if then[0] != now[0]:
        return f"the images of {name} have changed"
    if then[1] != now[1]:
        return f"the split of {name} (its groups, column or lists) has changed"
    return ""


def remove_checkpoint(directory: Path) -> None:
    """Remove the checkpoint, then the model that it names."""
    (directory / CHECKPOINT_FILE).unlink(missing_ok=True)
    _remove_models(directory)


def remove_leftover(finished: RunConfiguration, directory: Path) -> None:
    """Remove the checkpoint of the finished run, whose process was killed just before it did.

    It stays where it is of more steps, and where another process works in the folder.
    """
    if finished.keep_checkpoint or not (
        (directory / CHECKPOINT_FILE).exists() or any(directory.glob("best-*.safetensors"))
    ):
        return
    with suppress(OutputError), claimed(directory):
        checkpoint = None
        with suppress(CheckpointError):  # a damaged one is of no use
            checkpoint = load_checkpoint(directory)
        if checkpoint is None or not is_longer(checkpoint.configuration, finished):
            remove_checkpoint(directory)


def save_weights(weights: Weights, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file; raises `OutputError`."""
    from safetensors.torch import save_file

    form = torch.contiguous_format  # in copies: layers may have some in common, as those of CoaT
    tensors = {name: value.cpu().clone(memory_format=form) for name, value in weights.items()}
    with _explained(path), atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata)


def _read(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:  # torch writes checksums and does not read them
        broken = archive.testzip()
    if broken is not None:
        raise ValueError(f"checksum of {broken}")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # whose words recommend to load it nevertheless
        raise ValueError("it holds something else than data") from error
    if content["version"] not in (_VERSION, _UNSIGNED):
        raise ValueError("another version")
    signed = content.pop("outline", None) if content["version"] != _UNSIGNED else outline(content)
    if signed != outline(content):
        raise ValueError("it is not what was written")
    del content["version"]
    return content


def outline(content: object) -> str:
    """A digest of all but the values of large tensors: names, types, shapes, numbers and texts."""
    return hashlib.sha256("".join(_outlined(content)).encode()).hexdigest()


def _outlined(value: object) -> Iterator[str]:
    if isinstance(value, Tensor):
        numbers = value.tolist() if value.numel() <= _FEW else ""
        yield f"{value.dtype}{list(value.shape)}{numbers};"
    elif isinstance(value, dict | list | tuple):
        yield f"{type(value).__name__}{len(value)};"
        for each in value.items() if isinstance(value, dict) else value:
            yield from _outlined(each)
    else:
        yield f"{value!r};"


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
    reason = complaint(error) if isinstance(error, ValidationError) else one_line(error)
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
        raise OutputError(
            f"cannot write {path}: {one_line(error)}; is the disk full? free some space and repeat"
        ) from error
