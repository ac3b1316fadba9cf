"""Works on one task after the other; what they share is paid for once a process."""

import os
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.doors import fault_of
from gradsurgery.errors import GradsurgeryError, one_line
from gradsurgery.sweep.launcher import Outcome, Task
from gradsurgery.training import TrainingProgress

if TYPE_CHECKING:
    from gradsurgery.data import ImageSet

_images: "dict[tuple[str, int, bool, str | None], ImageSet]" = {}


def work(task: Task, report: Callable[[TrainingProgress], None]) -> Outcome:
    """Train the task's run; every error becomes an outcome, with its traceback."""
    import torch

    from gradsurgery.training import train
    from gradsurgery.training.directory import BusyError
    from gradsurgery.training.tensorboard import event_log

    torch.set_num_threads(task.options.get("threads") or 1)
    with suppress(OSError):  # a machine of a cluster may not have it
        os.chdir(task.working_directory)
    directory = Path(task.directory)
    try:
        configuration = RunConfiguration(**task.options)
        cache = None if task.cache is None else Path(task.cache)
        images = _prepared(configuration, cache, report)
        with ExitStack() as stack:
            reported = (
                stack.enter_context(event_log(directory, report)) if task.tensorboard else report
            )
            train(configuration, directory, reported, opened=images)
    except BusyError as error:
        return Outcome("busy", str(error))
    except GradsurgeryError as error:
        return Outcome("failed", str(error), traceback.format_exc())
    except (Exception, SystemExit) as error:  # a sweep goes on, whatever a run does
        return Outcome("failed", fault_of(error) or one_line(error), traceback.format_exc())
    return Outcome("done")


def _prepared(
    configuration: RunConfiguration,
    cache: Path | None,
    report: Callable[[TrainingProgress], None],
) -> "ImageSet":
    """The run's decoded images, which the process keeps for the next run."""
    from gradsurgery.data import open_source
    from gradsurgery.training.run import prepare_images

    c = configuration
    key = (c.data, c.image_size, c.skip_bad, None if cache is None else str(cache))
    if key not in _images:
        _images[key] = prepare_images(open_source(c.data), c, cache, report)
    return _images[key]
