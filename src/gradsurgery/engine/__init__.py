"""Runs the D backward passes and folds each parameter's gradient through a rule into .grad."""

from gradsurgery.engine.backward import BackwardResult, backward

__all__ = ["BackwardResult", "backward"]
