"""`gradsurgery compare`: methods x targets x seeds on one data set, and their table."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gradsurgery.cli import options as opt
from gradsurgery.cli.sweep import plan_parts, print_table, run_plan


@opt.takes_launch_options
@opt.takes_training_options
def compare(
    data: opt.DataArgument,
    *,
    methods: opt.MethodsOption = None,
    targets: opt.TargetsOption = None,
    seeds: opt.SeedsOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Default: sweeps/<data>.")] = None,
    launch: dict[str, Any],
    training: dict[str, Any],
) -> None:
    """Train every method on every target with every seed, and print the table.

    A `gradsurgery sweep` on one data set, without the report. Runs whose record is there already
    are not repeated: the same command again goes on where it was interrupted. Run k of every method
    has the same initial weights and the same batches.
    """
    given = {"data": [data], "methods": methods, "targets": targets, "seeds": seeds}
    parts = plan_parts(None, training) | {k: v for k, v in given.items() if v is not None}
    run_plan(parts, out, opt.LaunchOptions(**launch), after=print_table)
