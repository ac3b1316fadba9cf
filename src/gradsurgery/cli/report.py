"""`gradsurgery report`: tables, figures and a page from the records of many runs."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from gradsurgery.cli import options as opt
from gradsurgery.cli.show import print_comparisons
from gradsurgery.data import BUILT_IN, PRESETS, example_images, open_source
from gradsurgery.documents.record import Record
from gradsurgery.errors import GradsurgeryError, one_line
from gradsurgery.report.report import Report, ReportOptions, write_report
from gradsurgery.results import take_inventory
from gradsurgery.results.tables import BASELINE

if TYPE_CHECKING:
    from gradsurgery.report.figures.pictures import Examples


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Folders of finished runs.")
    ],
    *,
    baseline: opt.BaselineOption = BASELINE,
    model: opt.ModelOption = None,
    paper: opt.PaperOption = False,
    selected: opt.SelectedOption = None,
    examples: Annotated[
        list[str] | None,
        typer.Option(
            "--examples",
            metavar="DATA",
            help="A data set to show images of, as `gradsurgery train` takes it. Default: that of "
            "the records, where it is built in or lies on this machine.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Default: the folder report in FOLDER.")
    ] = None,
) -> None:
    """Write the tables, figures and the page report.html of finished runs."""
    options = ReportOptions(model, baseline, paper, selected)
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
        options = replace(options or ReportOptions(), examples=images, notes=notes)
        return write_report(inventory, out, options, status.update)


def recorded_data(records: Iterable[Record]) -> dict[str, dict[str, Any]]:
    """The data sets of the records that can be opened without asking the network, and how."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        spec = record.configuration.data
        preset, colon, place = spec.partition(":")
        here = place if colon and preset in PRESETS else spec
        if preset in BUILT_IN or Path(here).expanduser().exists():
            found[spec] = record.configuration.reading
    return found


def open_examples(spec: str, *, size: int = 112, **reading: Any) -> "Examples":
    """An image of every class and domain; raises as `open_source` does."""
    from gradsurgery.report.figures.pictures import Examples  # takes matplotlib

    source = open_source(spec, **reading)
    images = example_images(source, size)
    return Examples(source.name, source.classes, source.domains, images)
