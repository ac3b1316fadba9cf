"""TensorBoard's event files of one run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gradsurgery.training.progress import ProgressCallback, TrainingProgress

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

EVENTS_FOLDER = "tensorboard"


@contextmanager
def event_log(directory: Path, report: ProgressCallback) -> Iterator[ProgressCallback]:
    """A report that writes event files into `directory/tensorboard` and passes on to `report`.

    The scalars by step are loss, agreement, validation loss and accuracy, and the part of the time
    that steps wait for images. A run that goes on
    writes a further file, which takes the place of the steps that it repeats.
    """
    writer: SummaryWriter | None = None

    def write(progress: TrainingProgress) -> None:
        nonlocal writer
        report(progress)
        if progress.stage != "training":
            return
        if writer is None:
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(directory / EVENTS_FOLDER, purge_step=progress.done)
        scalars = {
            "loss": progress.loss,
            "agreeing": progress.agreeing,
            "validation/loss": progress.validation_loss,
            "validation/accuracy": progress.validation_accuracy,
            "data_wait": progress.data_wait,
        }
        for name, value in scalars.items():
            if value is not None:
                writer.add_scalar(name, value, progress.done)
        if progress.validation_accuracy is not None:
            writer.flush()

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()
