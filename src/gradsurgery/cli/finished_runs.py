"""Commands on finished runs: `gradsurgery show`, `select` and `report`."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from gradsurgery.atomic import check_folder, expanded
from gradsurgery.documents.deployment import MODEL_FOLDER, Deployment
from gradsurgery.documents.plan import usual_name
from gradsurgery.documents.record import Record
from gradsurgery.documents.selection import CRITERIA, CriterionName, Model, Selections
from gradsurgery.errors import ArgumentError, GradsurgeryError, one_line, printable
from gradsurgery.report.model_card import doubtful, expectation
from gradsurgery.report.rendering import OnTerminal, literal, to_latex, to_markdown
from gradsurgery.report.report import Report, ReportOptions, write_report
from gradsurgery.report.run_text import run_blocks
from gradsurgery.report.section import Table, Text, by_data_and_target
from gradsurgery.report.tables import (
    candidates_table,
    choice_cautions,
    choices_table,
    comparison_csv,
    comparison_table,
    significance_table,
    unavailable,
)
from gradsurgery.results import (
    ComparisonTable,
    compare_runs,
    search_of,
    select_by_all,
    take_inventory,
)
from gradsurgery.results.runs import record_files
from gradsurgery.results.selection import ALL
from gradsurgery.results.tables import BASELINE, rename_methods

if TYPE_CHECKING:
    from gradsurgery.report.figures.pictures import Examples


Format = Literal["rich", "markdown", "csv", "latex"]
BaselineOption = Annotated[str, typer.Option(help="The method that the others are tested against.")]
ModelOption = Annotated[
    Model | None, typer.Option(help="best (by validation, the default), or last.")
]
RenameOption = Annotated[
    list[str] | None,
    typer.Option(
        "--rename",
        metavar="METHOD=NAME",
        help="Call a method so in tables and figures, as a paper does: deep-all=ERM. May be given "
        "several times.",
    ),
]
PaperOption = Annotated[
    bool, typer.Option("--paper", help="With the figures of the paper's Table 1.")
]
SelectedOption = Annotated[
    Literal[CriterionName, "none"] | None,
    typer.Option(
        help="Of a search, compare what this criterion selects (a report of a sweep with a grid: "
        "training-domain), or all candidates with none."
    ),
]


def show(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Records, or folders of runs.")
    ],
    *,
    output: Annotated[Format, typer.Option("--format", help="How tables are written.")] = "rich",
    model: ModelOption = None,
    baseline: BaselineOption = BASELINE,
    selected: SelectedOption = None,
    paper: PaperOption = False,
    rename: RenameOption = None,
    statistics: Annotated[
        bool,
        typer.Option("--statistics", help="With differences, intervals and p-values of each test."),
    ] = False,
) -> None:
    """Show what runs came to: one in detail, several as tables of mean and standard deviation.

    A star marks what differs from the baseline (paired Wilcoxon test, p < 0.05), a dagger what
    does so after Holm's correction over the table.
    """
    files = record_files(paths)
    if len(files) == 1 and output == "rich" and selected is None:
        Console().print(OnTerminal(run_blocks(Record.load(files[0]))))
        return
    print_tables(
        paths,
        output,
        model,
        baseline,
        selected=selected,
        paper=paper,
        rename=rename,
        statistics=statistics,
    )


def print_tables(
    paths: list[Path],
    output: Format = "rich",
    model: Model | None = None,
    baseline: str = BASELINE,
    *,
    selected: Literal[CriterionName, "none"] | None = None,
    paper: bool = False,
    rename: Sequence[str] | None = None,
    statistics: bool = False,
) -> None:
    """Print the comparison tables of the records at `paths`, with the plans that lie there.

    Runs that a study trained for itself are left out, as a report does. Raises `DataError` where
    there is nothing to compare.
    """
    inventory = take_inventory(paths)
    search = search_of(inventory, selected or ALL)
    tables = compare_runs(search.runs, model or search.model, baseline, inventory.plans)
    tables = rename_methods(tables, _names(rename))
    if output == "rich":
        print_comparisons(tables, paper=paper, statistics=statistics)
        if search.provisional:
            print(search.provisional)
        return
    shown = [comparison_table(table, paper=paper) for table in tables]
    shown += [significance_table(tables)] if statistics else []
    if output == "csv":
        written = comparison_csv(tables, paper=paper)
    else:
        written = to_markdown(shown) if output == "markdown" else to_latex(shown)
    print("\n".join(map(printable, written.split("\n"))), end="")


def _names(rename: Sequence[str] | None) -> dict[str, str]:
    """What methods are to be called, by the names that they have."""
    names = {}
    for text in rename or ():
        method, _, name = (part.strip() for part in text.rpartition("="))
        if not method or not name:
            raise ArgumentError(f"--rename takes METHOD=NAME, e.g. deep-all=ERM, found {text!r}")
        names[usual_name(method)] = name
    return names


def print_comparisons(
    tables: Sequence[ComparisonTable], *, paper: bool, statistics: bool = False
) -> None:
    """Print comparison tables, and with `statistics` the tests behind them."""
    for table in tables:
        blocks: list[Text | Table] = [comparison_table(table, paper=paper)]
        blocks += [significance_table([table])] if statistics and table.tests else []
        if len(table.methods) > 1 and table.baseline not in table.methods:
            other = f"--baseline {table.methods[0]}"
            blocks.append(Text(f"show and report test against another method with, say, {other}"))
        Console().print(OnTerminal(blocks))


def print_sentences(sentences: Iterable[str]) -> None:
    """Print each on a line, which a terminal breaks between words."""
    console = Console()
    for sentence in sentences:
        console.print(literal(sentence), soft_wrap=not console.is_terminal)


def select(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of runs.")],
    *,
    criterion: Annotated[CriterionName | None, typer.Option(help="Show this one only.")] = None,
    candidates: Annotated[
        bool, typer.Option("--candidates", help="Show how every candidate scores.")
    ] = False,
) -> None:
    """Choose hyperparameters among the runs of a folder, and write selection.json there.

    training-domain: by the validation images of the source domains. leave-one-domain-out: by each
    source domain in turn, held out too. oracle: by the target's validation images, which is not
    attainable where the target is unknown, and only says what could be had.
    """
    if not folder.is_dir():
        raise ArgumentError(f"{folder} is no folder; give a folder of runs")
    selections = select_by_all(take_inventory([folder]))
    path = folder / Selections.file_name
    if path.exists():
        Selections.load(path)  # another version's, or someone else's, is not overwritten
    selections.save(folder)
    shown = selections.criteria
    if criterion is not None:
        shown = {criterion: shown[criterion]}
    tables = [candidates_table, choices_table] if candidates else [choices_table]
    blocks: list[Text | Table] = []
    for table in tables:
        blocks += by_data_and_target(table(shown))
    if not all(CRITERIA[name].attainable for name in shown):
        blocks.append(
            Text(
                "The oracle sees the target's images, which nobody has who needs the model. It "
                "tests the model of the last step, the other criteria that of the best validation."
            )
        )
    blocks += map(Text, [*unavailable(shown).values(), *choice_cautions(shown)])
    Console().print(OnTerminal(blocks))
    print(f"written to {path}")


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Folders of finished runs.")
    ],
    *,
    baseline: BaselineOption = BASELINE,
    model: ModelOption = None,
    paper: PaperOption = False,
    selected: SelectedOption = None,
    rename: RenameOption = None,
    examples: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATA",
            help="A data set to show images of, as `gradsurgery train` takes it. Default: that of "
            "the records, where it is built in or lies on this machine.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Default: the folder report in FOLDER.")] = None,
) -> None:
    """Write the tables, figures and the page report.html of finished runs."""
    options = ReportOptions(model, baseline, paper, selected, names=_names(rename))
    written = make_report(folders, out, options, examples)
    print_comparisons(written.tables, paper=paper)
    print(f"report: {written.page}")


def make_report(
    folders: list[Path],
    out: Path | None = None,
    options: ReportOptions | None = None,
    examples: list[str] | None = None,
) -> Report:
    """Write the report of `folders` and say on a terminal what is being done.

    examples: data sets to show images of; None takes those of the records that are at hand.
    """
    if out is not None:
        check_folder(out)
    with Console(stderr=True).status("reading records") as status:
        inventory = take_inventory(folders)
        images, notes = [], []
        asked: dict[str, dict[str, Any]] = {spec: {} for spec in examples or ()}
        specs = recorded_data(inventory.records.values()) if examples is None else asked
        for spec, reading in specs.items():
            try:
                images.append(open_examples(spec, **reading))
            except (GradsurgeryError, OSError) as error:
                if examples is not None:
                    raise
                notes.append(f"No example images of {spec} are shown: {one_line(error)}.")
        deployments = [
            Deployment.load(folder / MODEL_FOLDER)
            for folder in folders
            if (folder / MODEL_FOLDER / Deployment.file_name).is_file()
        ]
        first = [s for each in deployments for s in (expectation(each).text, *doubtful(each))]
        options = replace(options or ReportOptions(), examples=images, first=first, notes=notes)
        return write_report(inventory, out, options, status.update)


def recorded_data(records: Iterable[Record]) -> dict[str, dict[str, Any]]:
    """The data sets of the records that can be opened without asking the network, and how."""
    from gradsurgery.data import BUILT_IN, PRESETS  # takes torch

    found: dict[str, dict[str, Any]] = {}
    for record in records:
        spec = record.configuration.data
        preset, colon, place = spec.partition(":")
        here = place if colon and preset in PRESETS else spec
        if preset in BUILT_IN or expanded(here).exists():
            found[spec] = record.configuration.reading
    return found


def open_examples(spec: str, **reading: Any) -> "Examples":
    """An image of every class and domain that figure 1 shows; raises as `open_source` does."""
    from gradsurgery.data import example_images, open_source
    from gradsurgery.report.figures.pictures import SIDE, Examples, exemplary  # takes matplotlib

    source = open_source(spec, **reading)
    images = example_images(source, SIDE, *exemplary(source.classes, source.domains))
    return Examples(source.name, source.classes, source.domains, images)
