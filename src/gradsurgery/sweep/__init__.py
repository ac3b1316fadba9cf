"""Many runs: a plan, its runs with their identities, and launchers that work on them."""

from gradsurgery.sweep.run import run_sweep
from gradsurgery.sweep.schedule import Execution

__all__ = ["Execution", "run_sweep"]
