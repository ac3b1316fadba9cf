"""What a finished run leaves behind: `record.json`."""

import json
import math
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from gradsurgery.atomic import atomic_file
from gradsurgery.errors import DataError
from gradsurgery.training.configuration import RunConfiguration
from gradsurgery.training.conflict import ConflictLog

RECORD_FILE = "record.json"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SkippedFile(_Part):
    """An image left out because it could not be decoded."""

    identity: str
    reason: str


class DataRecord(_Part):
    """The image set: `images` counts the images of each domain."""

    name: str
    digest: str
    domains: list[str]
    classes: list[str]
    images: dict[str, int]
    skipped: list[SkippedFile]


class SplitSizes(_Part):
    """Numbers of images of one domain in each part."""

    train: int
    validation: int
    test: int


class SplitRecord(_Part):
    """The split and the seed it was drawn with."""

    digest: str
    seed: int
    sizes: dict[str, SplitSizes]


class ModelRecord(_Part):
    """The network: `weights_digest` is that of the initial weights' file, None without one."""

    parameters: int
    pretrained: bool
    weights_digest: str | None


class Curves(_Part):
    """One entry a validation; a value that is not finite is None.

    `train_loss`, `agreeing` (fraction of components that agree, in [0, 1]) and `cosine` (mean over
    the pairs of domains, in [-1, 1]) are means over the steps since the validation before.
    """

    step: list[int] = []
    train_loss: list[float | None] = []
    validation_loss: list[float | None] = []
    validation_accuracy: list[float] = []
    agreeing: list[float | None] = []
    cosine: list[float | None] = []

    def append(
        self,
        *,
        step: int,
        train_loss: float | None,
        validation_loss: float,
        validation_accuracy: float,
        agreeing: float | None,
        cosine: float | None,
    ) -> None:
        """Add one validation."""
        self.step.append(step)
        self.train_loss.append(_finite(train_loss))
        self.validation_loss.append(_finite(validation_loss))
        self.validation_accuracy.append(validation_accuracy)
        self.agreeing.append(_finite(agreeing))
        self.cosine.append(_finite(cosine))

    def best(self) -> int:
        """Position of the highest validation accuracy; ties go to the earlier."""
        return max(range(len(self.step)), key=self.validation_accuracy.__getitem__)


class ModelResult(_Part):
    """Accuracies in [0, 1] of one model; `target_accuracy` is the target's test accuracy.

    `target_validation_accuracy` is that on the target's validation images, which the oracle of
    model selection looks at and nothing else; None in records of runs that did not test it.
    `averaged_from` is the first step of the mean that SWAD's model is, `step` its last; None for
    every other model.
    """

    step: int
    averaged_from: int | None = None
    validation_accuracy: float
    target_accuracy: float
    target_validation_accuracy: float | None = None
    test_accuracy: dict[str, float]


class Result(_Part):
    """The model of the highest validation accuracy, and the last one.

    With the average "ema" both are exponential averages; with "swad" the best is the average over
    the valley of the validation loss, and the last is the plain model.
    """

    best: ModelResult
    last: ModelResult


class Cost(_Part):
    """What the run took; the only part that differs between two runs of one command.

    `seconds` covers training, validation and checkpoints of all the processes that worked on the
    run; `peak_memory_bytes` is the device's where it has memory of its own, else the process's.
    """

    seconds: float
    seconds_per_step: float
    peak_memory_bytes: int


class Record(_Part):
    """A finished run; `conflict` is None where the run did not log it."""

    version: int = 1
    configuration: RunConfiguration
    data: DataRecord
    split: SplitRecord
    model: ModelRecord
    curves: Curves
    conflict: ConflictLog | None = None
    result: Result
    environment: dict[str, str | int | bool | None]
    cost: Cost

    def save(self, directory: Path) -> None:
        """Write `record.json` into `directory`; raises `OutputError`."""
        with atomic_file(directory / RECORD_FILE) as temporary:
            temporary.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Record":
        """Read a `record.json`; raises `DataError` where it is not one."""
        try:
            content = json.loads(path.read_bytes())
            expected = cls.model_fields["version"].default
            if isinstance(content, dict) and content.get("version") not in (None, expected):
                raise ValueError(f"it has version {content['version']!r}, expected {expected}")
            return cls.model_validate(content)
        except (OSError, ValueError) as error:  # pydantic's and the decoder's are ValueErrors
            reason = " ".join(str(error).split()[:30])
            message = f"{path} is not a record of a run ({reason}); delete it and repeat the run"
            raise DataError(message) from error


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
