"""Many runs: a plan, its runs with their identities, and launchers that work on them."""

from gradsurgery.sweep.plan import Plan, load_plan
from gradsurgery.sweep.run import Manner, run_sweep

__all__ = ["Manner", "Plan", "load_plan", "run_sweep"]
