"""Many runs: a plan, its runs with their identities, and launchers that work on them."""

from gradsurgery.sweep.run import Execution, run_sweep

__all__ = ["Execution", "run_sweep"]
