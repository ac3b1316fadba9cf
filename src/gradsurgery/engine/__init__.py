"""Gives each parameter's gradients by domain to a rule, and writes its update into .grad.

`passes.py` produces the gradients, `accumulators.py` keeps them for the rule; the two meet in
`Accumulator.receive` and nowhere else.
"""

from gradsurgery.engine.accumulators import Accumulator
from gradsurgery.engine.backward import BackwardResult, backward, check_losses, write_update
from gradsurgery.engine.passes import checked_loss, gradients_of

__all__ = [
    "Accumulator",
    "BackwardResult",
    "backward",
    "check_losses",
    "checked_loss",
    "gradients_of",
    "write_update",
]
