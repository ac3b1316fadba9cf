"""`gradsurgery compare`: methods x targets x seeds on one data set, and their table."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gradsurgery.cli import options as opt
from gradsurgery.cli.sweep import plan_parts, print_table, run_plan


@opt.takes_launch_options
@opt.takes_plan_options
def compare(
    data: Annotated[str | None, opt.DATA] = None,
    *,
    config: opt.ConfigOption = None,
    print_config: opt.PrintConfigOption = False,
    methods: opt.MethodsOption = None,
    targets: opt.TargetsOption = None,
    seeds: opt.SeedsOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Default: sweeps/<data>.")] = None,
    launch: opt.LaunchOptions,
    options: dict[str, Any],
) -> None:
    """Train every method on every target with every seed, and print the table.

    A `gradsurgery sweep` on one data set, without the report. Runs whose record is there already
    are not repeated: the same command again goes on where it was interrupted. Run k of every method
    has the same initial weights and the same batches.
    """
    given = {"data": data and [data], "methods": methods, "targets": targets, "seeds": seeds}
    parts = plan_parts(config, given, options)
    run_plan(parts, out, launch, after=print_table, print_config=print_config)
