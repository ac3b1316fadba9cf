"""`gradsurgery reproduce`: the paper's experiments by the name of their table or figure."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from gradsurgery.cli import options as opt
from gradsurgery.cli.sweep import plan_parts, report_on, run_plan

app = typer.Typer(
    help="Run the experiments of Mansilla et al. (ICCV 2021) with their settings.",
    no_args_is_help=True,
)

DatasetsOption = Annotated[
    str | None,
    typer.Option(
        "--datasets",
        help="Data sets, separated by commas, each as `gradsurgery train` takes it. Default: "
        "pacs,vlcs,office-home.",
    ),
]
OutOption = Annotated[Path | None, typer.Option("--out", help="Default: runs/reproduce/<name>.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say how many runs there are and how long they will take.")
]


def _command(name: str, folder: str, summary: str) -> None:
    """Add the command that runs the plan `name` and reports on it."""

    @opt.takes_launch_options
    @opt.takes_training_options
    def run(
        *,
        datasets: DatasetsOption = None,
        seeds: opt.SeedsOption = None,
        methods: opt.MethodsOption = None,
        targets: opt.TargetsOption = None,
        out: OutOption = None,
        dry_run: DryRunOption = False,
        launch: dict[str, Any],
        training: dict[str, Any],
    ) -> None:
        from gradsurgery.sweep.paper_plans import paper_plan
        from gradsurgery.sweep.plan import names

        parts = paper_plan(name, None if datasets is None else names(datasets), seeds)
        given = {"methods": methods, "targets": targets}
        parts |= {key: value for key, value in given.items() if value is not None}
        parts |= plan_parts(None, training)
        run_plan(
            parts,
            out or Path("runs", "reproduce", folder),
            opt.LaunchOptions(**launch),
            after=partial(report_on, paper=True),
            dry_run=dry_run,
        )

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
    "The surgery rules with batches of several domains against batches of one.",
)
_command(
    "grid-search",
    "grid-search",
    "Learning rate and weight decay by validation accuracy on the source domains.",
)


@app.command("figure1")
def figure1(
    *,
    datasets: DatasetsOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Default: runs/reproduce/figure1.")
    ] = None,
) -> None:
    """Draw an image of every class and domain."""
    from gradsurgery.cli.report import open_examples
    from gradsurgery.report.drawing import draw_example_images
    from gradsurgery.report.figures.style import save

    folder = out or Path("runs", "reproduce", "figure1")
    examples = [open_examples(spec) for spec in _specs(datasets)]
    for drawing in draw_example_images(examples):
        for path in save(drawing.figure, folder / drawing.stem):
            print(path)


@app.command("figure2")
@opt.takes_training_options
def figure2(
    *,
    datasets: DatasetsOption = None,
    seeds: opt.SeedsOption = None,
    targets: opt.TargetsOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Default: runs/reproduce/figure2.")
    ] = None,
    cache: opt.CacheOption = None,
    training: dict[str, Any],
) -> None:
    """Similarity of samples' gradients within and across domains, while Deep-All trains."""
    from gradsurgery.cli.similarity import print_study, run_study
    from gradsurgery.data import open_source
    from gradsurgery.documents.similarity_record import SimilarityOptions
    from gradsurgery.sweep.plan import names
    from gradsurgery.training.directory import folder_name

    options = SimilarityOptions(every=10, samples_per_domain=8, all_domains=False)
    folder = out or Path("runs", "reproduce", "figure2")
    for spec in _specs(datasets):
        source = open_source(spec)
        held_out = source.domains if targets in (None, "all") else names(targets)
        for target in held_out:
            run = training | {"data": spec, "target": target, "method": "deep-all"}
            place = folder / folder_name(source.name) / folder_name(target)
            study, directory = run_study(run, seeds or "3", options, place, cache)
            print_study(study, directory)


def _specs(datasets: str | None) -> list[str]:
    from gradsurgery.sweep.paper_plans import DATA_SETS
    from gradsurgery.sweep.plan import names

    return list(DATA_SETS) if datasets is None else names(datasets)
