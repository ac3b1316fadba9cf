"""One run: its options, the loop, model selection, checkpoint and resume, its record.

Names are imported when they are first used: reading records needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradsurgery.training.checkpoint import CheckpointError
    from gradsurgery.training.configuration import RunConfiguration
    from gradsurgery.training.progress import TrainingProgress
    from gradsurgery.training.record import Record
    from gradsurgery.training.run import train

__all__ = ["CheckpointError", "Record", "RunConfiguration", "TrainingProgress", "train"]

_MODULES = {
    "CheckpointError": "checkpoint",
    "Record": "record",
    "RunConfiguration": "configuration",
    "TrainingProgress": "progress",
    "train": "run",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
