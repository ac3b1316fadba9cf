"""One run: the loop, model selection, checkpoint and resume, its record."""

from gradsurgery.training.checkpoint import CheckpointError
from gradsurgery.training.progress import TrainingProgress
from gradsurgery.training.run import train

__all__ = ["CheckpointError", "TrainingProgress", "train"]
