"""`gradsurgery reproduce`: the paper's experiments by the name of their table or figure."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from gradsurgery.atomic import check_folder
from gradsurgery.cli import options as opt
from gradsurgery.cli.finished_runs import open_examples
from gradsurgery.cli.studies import run_study, written_seeds
from gradsurgery.cli.sweep import plan_parts, report_on, run_plan
from gradsurgery.data import open_source
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.data_options import listed_names
from gradsurgery.documents.document import folder_name
from gradsurgery.documents.plan import parse_seeds
from gradsurgery.documents.studies import SimilarityOptions
from gradsurgery.errors import ArgumentError
from gradsurgery.report.figures.pictures import draw_examples
from gradsurgery.report.figures.style import save
from gradsurgery.report.report import file_stems
from gradsurgery.report.section import counted
from gradsurgery.sweep.runs import DATA_SETS, paper_plan
from gradsurgery.training.run import check_run

app = typer.Typer(
    help="Run the experiments of Mansilla et al. (ICCV 2021) with their settings.",
    no_args_is_help=True,
)

DatasetsOption = Annotated[
    str | None,
    typer.Option(
        help="Data sets, separated by commas, each as `gradsurgery train` takes it. Default: "
        "pacs,vlcs,office-home."
    ),
]
OutOption = Annotated[Path | None, typer.Option(help="Default: runs/reproduce/<name>.")]


def _command(name: str, folder: str, summary: str) -> None:
    """Add the command that runs the plan `name` and reports on it."""

    @opt.takes_plan("grid")
    def run(
        *,
        datasets: DatasetsOption = None,
        plan: opt.PlanOptions,
        out: OutOption = None,
        launch: opt.LaunchOptions,
        options: dict[str, Any],
    ) -> None:
        data = None if datasets is None else listed_names(datasets)
        parts = plan_parts(plan, data, options, paper_plan(name))
        folder_of_runs = out or Path("runs", "reproduce", folder)
        run_plan(parts, folder_of_runs, plan, launch, after=partial(report_on, paper=True))

    app.command(name, help=summary)(run)


_command(
    "table1",
    "table1",
    "Eight methods x all targets x 20 seeds: mean, standard deviation and significance.",
)
_command("figure3", "table1", "Box plots of the runs of Table 1, which it shares the folder of.")
_command(
    "figure4",
    "figure4",
    "The 3 surgery rules x all targets x 20 seeds, with batches of several domains and of one.",
)
_command(
    "grid-search",
    "grid-search",
    "Learning rate and weight decay of Deep-All and the 3 surgery rules, with 3 seeds, by the "
    "validation accuracy on the source domains.",
)


@app.command("figure1")
def figure1(
    *, datasets: DatasetsOption = None, out: OutOption = None, dry_run: opt.DryRunOption = False
) -> None:
    """Draw an image of every class and domain; there is nothing to train."""
    folder = out or Path("runs", "reproduce", "figure1")
    if dry_run:
        print(f"0 runs: draws images of {', '.join(_specs(datasets))} into {folder}")
        return
    check_folder(folder)
    examples = [open_examples(spec) for spec in _specs(datasets)]
    stems = file_stems("figure1", [each.data for each in examples])
    for stem, each in zip(stems, examples, strict=True):
        for path in save(draw_examples(each).figure, folder / stem):
            print(path)


@app.command("figure2")
@opt.takes_run_options
def figure2(
    *,
    datasets: DatasetsOption = None,
    seeds: opt.SeedsOption = None,
    targets: opt.TargetsOption = None,
    config: opt.ConfigOption = None,
    out: OutOption = None,
    cache: opt.CacheOption = None,
    dry_run: opt.DryRunOption = False,
    print_config: Annotated[
        bool,
        typer.Option(
            "--print-config",
            help="Print the options as YAML, a document for each data set and target, each a file "
            "for `gradsurgery similarity --config`, and do nothing else.",
        ),
    ] = False,
    options: dict[str, Any],
) -> None:
    """Similarity of samples' gradients within and across domains, while Deep-All trains."""
    folder = out or Path("runs", "reproduce", "figure2")
    studied = ["seeds", *SimilarityOptions.model_fields]
    chosen = {"method": "deep-all"} | opt.configured(config, options, studied)
    if chosen["method"] != "deep-all":
        raise ArgumentError(
            f"figure 2 is measured while deep-all trains, found the method {chosen['method']} in "
            f"{config}; leave it out, or use `gradsurgery similarity --config`"
        )
    written = {name: chosen.pop(name, None) for name in ("data", "target", "seeds")}
    seeds = seeds or written_seeds(written["seeds"])
    in_file = datasets is None and written["data"] is not None
    _, run = opt.parted(chosen, SimilarityOptions)
    studies = []
    for spec in [written["data"]] if in_file else _specs(datasets):
        asked = RunConfiguration(**run | {"data": spec, "target": "any"})
        source = open_source(asked.data, **asked.reading)
        held_out: Sequence[str] = source.domains
        if targets not in (None, "all"):
            held_out = listed_names(targets)
        elif targets is None and written["target"] is not None:
            held_out = [str(written["target"])]
        if dry_run and not print_config:
            runs = len(held_out) * len(parse_seeds(seeds))
            count = counted(runs, "run")
            print(f"{count} on {source.name}, one for each target and seed, into {folder}")
            continue
        for target in held_out:
            of_target = {"data": spec, "target": target}
            check_run(RunConfiguration(**run | of_target), source.name, source.domains)
            place = folder / folder_name(source.name) / folder_name(target)
            studies.append((chosen | of_target, place))
    for number, (study, place) in enumerate(studies):  # of which each has what it needs
        if print_config and number:
            print("---")
        run_study(study, seeds, place, cache, print_config=print_config)


def _specs(datasets: str | None) -> list[str]:
    return list(DATA_SETS) if datasets is None else listed_names(datasets)
