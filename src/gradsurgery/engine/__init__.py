"""Gives each parameter's gradients by domain to a rule, and writes its update into .grad."""

from gradsurgery.engine.backward import backward
from gradsurgery.engine.update import BackwardResult

__all__ = ["BackwardResult", "backward"]
