"""Gives each parameter's gradients by domain to a rule, and writes its update into .grad.

`passes.py` produces the gradients, `accumulators.py` and `network.py` keep them for the rule; they
meet in `Accumulator.receive` (`accumulator.py`) and nowhere else.
"""

from gradsurgery.engine.accumulator import Accumulator
from gradsurgery.engine.backward import (
    BackwardResult,
    backward,
    check_losses,
    processes,
    write_update,
)
from gradsurgery.engine.passes import checked_loss, gradients_of

__all__ = [
    "Accumulator",
    "BackwardResult",
    "backward",
    "check_losses",
    "checked_loss",
    "gradients_of",
    "processes",
    "write_update",
]
