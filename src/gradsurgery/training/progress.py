"""What a run tells while it works."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrainingProgress:
    """One report of a run.

    Args:
        stage: "images" (decoding), "resuming" (at the step that an interrupted run goes on from),
            "training" (steps) or "testing" (test images).
        done: of `total`, in the stage's unit.
        total: how many there are.
        loss: mean loss of the source domains at this step.
        agreeing: fraction of the components on which the domains agree at this step.
        validation_loss: at this step, where it was validated.
        validation_accuracy: at this step, where it was validated.
        cosine: mean over the pairs of domains at this step.
        learning_rate: of this step.
        data_wait: fraction of the time of the steps so far that passed without images to compute
            on.
        note: a line for whoever watches.
    """

    stage: Literal["images", "resuming", "training", "testing"]
    done: int
    total: int
    loss: float | None = None
    agreeing: float | None = None
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    data_wait: float | None = None
    cosine: float | None = None
    learning_rate: float | None = None
    note: str | None = None


ProgressCallback = Callable[[TrainingProgress], None]
