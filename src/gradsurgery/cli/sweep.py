"""`gradsurgery sweep` and `compare`: many runs, and the report or the table on them."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from gradsurgery.cli import options as opt
from gradsurgery.cli.finished_runs import print_tables
from gradsurgery.cli.finished_runs import report as write_report
from gradsurgery.cli.live import continuable, displayed, sweep_displayed
from gradsurgery.cli.train import check_new
from gradsurgery.data import Source
from gradsurgery.documents.configuration import RunConfiguration, known_options
from gradsurgery.documents.document import folder_name, read_mapping, unknown_name
from gradsurgery.documents.plan import PLAN_PARTS, Plan, SweepPlan, number_or_text
from gradsurgery.documents.record import Record
from gradsurgery.errors import ArgumentError, DataError, GradsurgeryError, WeightsError
from gradsurgery.report.section import counted, duration
from gradsurgery.sweep import Execution, run_sweep
from gradsurgery.sweep.launcher import (
    LAUNCHERS,
    Launcher,
    LocalLauncher,
    Outcome,
    own_launcher,
    visible_gpus,
    worker_count,
)
from gradsurgery.sweep.run import given_up, prepare_runs
from gradsurgery.sweep.runs import configurations, existing_records, opened_sources, planned
from gradsurgery.sweep.schedule import Estimate, estimate
from gradsurgery.training import TrainingProgress
from gradsurgery.training import device as devices


@opt.takes_plan()
def sweep(
    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATA]...", help="Data sets, each as `gradsurgery train` takes it."
        ),
    ] = None,
    *,
    plan: opt.PlanOptions,
    leave_one_domain_out: Annotated[
        bool,
        typer.Option(
            "--leave-one-domain-out",
            help="Also run with every pair of domains held out, for that way of model selection.",
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the sweep. Default: sweeps/<data>.")
    ] = None,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write the report at the end.")
    ] = True,
    launch: opt.LaunchOptions,
    options: dict[str, Any],
) -> None:
    """Run data sets x targets x methods x seeds, and write the report.

    The same command again goes on where it ended, however it ended; on another machine with the
    same folder it shares the work.
    """
    parts = plan_parts(plan, data or None, options)
    if leave_one_domain_out:
        parts["leave_one_domain_out"] = True
    run_plan(parts, out, plan, launch, after=report_on if report else print_table)


@opt.takes_plan()
def compare(
    data: Annotated[str | None, opt.DATA] = None,
    *,
    plan: opt.PlanOptions,
    out: Annotated[Path | None, typer.Option(help="Default: sweeps/<data>.")] = None,
    launch: opt.LaunchOptions,
    options: dict[str, Any],
) -> None:
    """Train every method on every target with every seed, and print the table.

    A `gradsurgery sweep` on one data set, without the report. Runs whose record is there already
    are not repeated: the same command again goes on where it was interrupted. Run k of every method
    has the same initial weights and the same batches.
    """
    parts = plan_parts(plan, data and [data], options)
    run_plan(parts, out, plan, launch, after=print_table)


def plan_parts(
    given: opt.PlanOptions,
    data: Sequence[str] | None,
    options: dict[str, Any],
    usual: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The parts of a plan in a file, with those parts and options in their place that are given.

    usual: the parts of a known plan, in whose place a file's come.
    """
    path = given.config
    known = [*Plan.model_fields, *(each for each in known_options() if each not in PLAN_PARTS)]
    written = {} if path is None else read_mapping(path, "plan", known)
    for name in written:
        if name not in Plan.model_fields:
            raise ArgumentError(
                f"{name} in the plan {path} is an option of its runs; write it under options"
            )
    parts = {**usual, **written}
    typed = {"data": data, "methods": given.methods, "targets": given.targets, "seeds": given.seeds}
    parts |= {name: value for name, value in typed.items() if value is not None}
    written = mapping_of(parts, "options")
    for name in written if path is not None else ():
        if name not in known_options():
            raise unknown_name(f"option in the plan {path}:", name, known_options())
    mapping_of(written, "settings")  # raises where it is none
    return parts | {"options": opt.merged(written, options), "grid": _grid_of(parts, given.grid)}


def mapping_of(parts: dict[str, Any], name: str) -> dict[str, Any]:
    """The mapping that is part `name` of a plan, empty where it is not given."""
    found = parts.get(name)
    if found is not None and not isinstance(found, dict):
        raise ArgumentError(f"{name} of the plan: must be a mapping, found {found!r:.60}")
    return found or {}


def _grid_of(parts: dict[str, Any], texts: list[str] | None) -> dict[str, Any] | list[Any]:
    """The grid of a plan's parts, or its list of grids, with the values of `texts` in each."""
    given, found = grid_from(texts), parts.get("grid")
    if isinstance(found, list):
        return [each | given if isinstance(each, dict) else each for each in found]
    return mapping_of(parts, "grid") | given


def grid_from(texts: list[str] | None) -> dict[str, list[Any]]:
    """Values to try from "name=v1,v2"; raises `ArgumentError` where that is not what is there."""
    grid: dict[str, list[Any]] = {}
    for text in texts or []:
        name, equals, values = text.partition("=")
        if not (name and equals and values):
            raise ArgumentError(f"--grid takes NAME=V1,V2, e.g. learning_rate=1e-5, found {text!r}")
        key = name if "." in name else name.replace("-", "_")
        grid[key] = [number_or_text(value.strip()) for value in values.split(",")]
    return grid


def run_plan(
    parts: dict[str, Any],
    out: Path | None,
    given: opt.PlanOptions,
    options: opt.LaunchOptions,
    *,
    after: Callable[[Path], None],
) -> None:
    """Do the runs of a plan that are missing, then write and print what they came to.

    after: what to do with the folder of the runs. Raises `GradsurgeryError` at the end if a run
        failed.
    """
    plan = Plan(**parts)
    if given.print_config:
        opt.print_yaml(plan.model_dump() | {"options": resolved_options(plan)})
        return
    if options.launcher not in LAUNCHERS:
        own_launcher(options.launcher)  # raises where it is not to be had
    if options.ray_address is not None and options.launcher != "ray":
        raise ArgumentError(f"--ray-address is for --launcher ray, found {options.launcher}")
    _worker_count(options, plan, ())  # raises for a number that is none
    check_new(None if given.dry_run else out, SweepPlan.file_name, plan.methods)
    execution = Execution(
        options.cache, options.retries, opt.loggers(options.logger, options.tensorboard)
    )
    devices.keep_freed_memory()  # as the workers do: what is timed here tells their time
    sources = opened_sources(plan)
    folder = out or Path("sweeps", "+".join(folder_name(each.name) for each in sources.values()))
    if given.dry_run:
        print_estimate(plan, sources, folder, execution, options)
        return
    with continuable():
        with sweep_displayed(str(folder)) as show:
            failed = run_sweep(
                plan,
                sources,
                folder,
                launch=lambda: start_launcher(options, plan),
                check=lambda: check_launcher(options, plan),
                execution=execution,
                show=show,
            )
        try:
            after(folder)
        except GradsurgeryError as error:
            if failed:
                raise GradsurgeryError(f"{failure_line(failed, folder)}; {error}") from error
            raise
    if failed:
        raise GradsurgeryError(failure_line(failed, folder))


def resolved_options(plan: Plan) -> dict[str, Any]:
    """The options that every run of the plan has, also those that are not given.

    Those with another default for another data set, or for another value of the grid, are left out:
    each run has its own.
    """
    runs = [each.model_dump() for data in plan.data for each in _some_runs(plan, data)]
    shared = {
        name: value
        for name, value in runs[0].items()
        if name not in (*PLAN_PARTS, *plan.searched) and all(run[name] == value for run in runs)
    }
    return shared | {"settings": plan.options.get("settings", {})}


def _some_runs(plan: Plan, data: str) -> Iterator[RunConfiguration]:
    """A run for every value of the grid; the others on this data differ in what a plan decides."""
    return configurations(plan, "deep-all", data=data, target="any", without=[], seed=0)


def check_launcher(options: opt.LaunchOptions, plan: Plan) -> None:
    """Raise where no worker of the launcher that the options name could do a run of the plan."""
    c = next(_some_runs(plan, plan.data[0]))  # device and graph are the same in all
    here = options.launcher == "local"
    if options.launcher == "ray":
        from gradsurgery.sweep.ray_cluster import check_ray

        check_ray(options.ray_address)
    if not visible_gpus(c.device) and (here or c.device not in ("auto", "cuda")):
        devices.device_of(c)


def start_launcher(options: opt.LaunchOptions, plan: Plan) -> Launcher:
    """The launcher that the options name."""
    device = str(plan.options.get("device", "auto"))
    gpus = visible_gpus(device)
    if options.launcher == "local":
        return LocalLauncher(_worker_count(options, plan, gpus), gpus)
    asked: dict[str, Any] = {
        "workers": options.workers,
        "threads": plan.threads,
        "runs_per_gpu": 0 if device == "cpu" else options.runs_per_gpu,
    }
    if options.launcher == "ray":
        from gradsurgery.sweep.ray_cluster import RayLauncher  # ray is not always installed

        return RayLauncher(address=options.ray_address, **asked)
    make: Callable[..., Launcher] = own_launcher(options.launcher)
    return make(**asked)


def _worker_count(options: opt.LaunchOptions, plan: Plan, gpus: tuple[str, ...]) -> int:
    return worker_count(
        options.workers, gpus=len(gpus), runs_per_gpu=options.runs_per_gpu, threads=plan.threads
    )


def print_table(folder: Path) -> None:
    """Print the table of a folder of runs, and beside it where they are."""
    if any(folder.rglob(Record.file_name)):
        print_tables([folder])
        print(f"runs: {folder}", file=sys.stderr)


def report_on(folder: Path, *, paper: bool = False) -> None:
    """Print the table of a folder of runs, write its report, and print where it is."""
    if any(folder.rglob(Record.file_name)):
        write_report([folder], paper=paper)


def print_estimate(
    plan: Plan,
    sources: dict[str, Source],
    folder: Path,
    execution: Execution,
    options: opt.LaunchOptions,
) -> None:
    """Print how many runs there are, how many are finished, and how long the others will take."""
    runs = planned(plan, sources)
    given_up(plan, runs, folder)  # raises where the sweep would, as what follows
    records = existing_records(runs, folder)
    todo = [run for run in runs if run.directory not in records]
    if todo:
        check_launcher(options, plan)
    with displayed("images", lines=False) as images:
        prepare_runs(todo, sources, execution, images)
    print(f"{counted(len(runs), 'run')}, {len(records)} finished in {folder}")
    try:
        with displayed("timing", lines=False) as timing:
            left = estimate(
                runs,
                records,
                sources,
                execution,
                timed=lambda n, total: timing(TrainingProgress("training", n, total)),
            )
    except (WeightsError, DataError) as error:
        print(f"{len(todo)} to do; no estimate of the time they take: {error}")
        return
    workers = _worker_count(options, plan, visible_gpus(str(plan.options.get("device", "auto"))))
    several = f", {duration(left.with_workers(workers))} with {workers}"
    if options.launcher != "local" and options.workers is None:  # as many as there is room for
        several = ""
    print(
        f"{left.runs} to do: about {duration(left.seconds)} of one worker{several}; "
        f"{_basis(left, records)}"
    )


def _basis(left: Estimate, records: dict[str, Record]) -> str:
    """What an estimate is based on."""
    kinds = f"{counted(left.timed, 'kind')} of run timed here for a few steps"
    finished = f"what {counted(len(records), 'finished run')} took" if records else ""
    return "from " + " and ".join(filter(None, [kinds if left.timed else "", finished]))


def failure_line(failed: dict[str, Outcome], folder: Path) -> str:
    """What failed, in a line."""
    first, outcome = next(iter(failed.items()))
    return (
        f"{counted(len(failed), 'run')} failed, {first} with: {outcome.error}; see failure.json in "
        f"{folder / first}, and repeat the same command to try again"
    )
