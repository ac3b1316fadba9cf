"""The report of a folder of runs: tables, figures and one page that holds them all."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from gradsurgery.atomic import atomic_file
from gradsurgery.errors import ArgumentError, DataError
from gradsurgery.report.drawing import (
    Drawing,
    Examples,
    draw_example_images,
    draw_figure3,
    draw_figure4,
    draw_learning_curves,
    draw_ranking,
)
from gradsurgery.report.render import comparisons_to_markdown, to_csv, to_latex, to_markdown
from gradsurgery.results.comparison import ComparisonTable, Model
from gradsurgery.results.grid_search import Search, search_of
from gradsurgery.results.groups import Group, group_runs
from gradsurgery.results.inventory import take_inventory
from gradsurgery.results.paired_tests import comparison_frame
from gradsurgery.results.records import Records
from gradsurgery.results.tables import BASELINE, rank_methods
from gradsurgery.versioned import read_versioned

if TYPE_CHECKING:
    from gradsurgery.report.page.assemble import Figures
    from gradsurgery.results.statistics import Ranking

PAGE_FILE = "report.html"
FILES_FILE = "files.json"
VERSION = 1
Progress = Callable[[str], None]


@dataclass(frozen=True)
class ReportOptions:
    """What a report shows.

    model: whose accuracy: that of the best validation accuracy, or the last; None is the best, or
        what the criterion of `selected` takes.
    baseline: the method that the others are compared with.
    paper: put the paper's figures beside ours.
    selected: criterion of model selection whose choice the tables show where hyperparameters were
        searched; "none" shows every candidate; None is "training-domain" for the runs of a plan
        with a grid, else "none".
    examples: images for Figure 1.
    notes: sentences to add to the summary.
    """

    model: Model | None = None
    baseline: str = BASELINE
    paper: bool = False
    selected: str | None = None
    examples: Sequence[Examples] = ()
    notes: Sequence[str] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """What was written, and the tables it has."""

    page: Path
    tables: list[ComparisonTable]


def write_report(
    folder: Path | Sequence[Path],
    out: Path | None = None,
    options: ReportOptions | None = None,
    progress: Progress | None = None,
) -> Report:
    """Write tables, figures and `report.html` of the runs in `folder`.

    Written are table1.md, .tex and .csv, statistics.md and .csv, every figure that the records
    give as PNG and SVG, selection.md where hyperparameters were searched, and the page. Each file
    is there whole or not at all, the page comes last; the same records give the same bytes.
    files.json lists them: those that an earlier report wrote and this one does not are removed.

    Args:
        folder: of runs, or several.
        out: where to write; by default the folder `report` in (the first) `folder`.
        options: what to show.
        progress: called with a line on what is done next.

    Raises `DataError` for a folder without records and for records that cannot be used,
    `ArgumentError` for a baseline that is no method of the runs, `OutputError`.
    """
    options = options or ReportOptions()
    tell = progress or (lambda _: None)
    paths = [folder] if isinstance(folder, Path) else list(folder)
    out = out or paths[0] / "report"
    tell("reading records")
    inventory = take_inventory(paths)
    search = search_of(inventory, options.selected)
    model = options.model or search.model
    groups = group_runs(search.runs, model, options.baseline, inventory.planned)
    tables = [group.table for group in groups]
    _check_baseline(options.baseline, tables)
    ranking = rank_methods(tables)
    earlier = _earlier_files(out)
    texts = _texts(tables, search, paper=options.paper)
    for name, text in texts.items():
        _write(out / name, text)
    drawn = _draw(groups, inventory.records, ranking, options, out, tell)
    tell("writing the page")
    from gradsurgery.report.page.assemble import Contents, assemble

    files = sorted({*texts, *drawn.files, PAGE_FILE})
    for name in earlier - set(files):  # of other runs, or under the names that figures had then
        if (out / name).is_file():
            (out / name).unlink()
    _write(out / FILES_FILE, json.dumps({"version": VERSION, "files": files}, indent=1) + "\n")
    contents = Contents(inventory, groups, ranking, search, drawn, options.notes)
    _write(out / PAGE_FILE, assemble(contents, out, paper=options.paper))
    return Report(out / PAGE_FILE, tables)


def _earlier_files(out: Path) -> set[str]:
    """The names of the files that an earlier report wrote into the folder."""
    path = out / FILES_FILE
    if not path.exists():
        return set()
    content = read_versioned(path, "list of a report's files", VERSION, cure="delete it")
    names = content.get("files")
    if not isinstance(names, list) or any(Path(str(name)).name != name for name in names):
        raise DataError(f"{path} is no list of a report's files: {names!r:.80}; delete it")
    return set(names)


def _check_baseline(baseline: str, tables: Sequence[ComparisonTable]) -> None:
    methods = sorted({method for table in tables for method in table.methods})
    if baseline != BASELINE and baseline not in methods:
        raise ArgumentError(
            f"the baseline {baseline!r} is no method of these runs; they have {', '.join(methods)}"
        )


def _texts(tables: Sequence[ComparisonTable], search: Search, *, paper: bool) -> dict[str, str]:
    """The files that are text, by name."""
    texts = {
        "table1.md": to_markdown(tables, paper=paper),
        "table1.tex": to_latex(tables, paper=paper),
        "table1.csv": to_csv(tables, paper=paper),
        "statistics.md": comparisons_to_markdown(tables),
        "statistics.csv": comparison_frame(tables).to_csv(index=False, lineterminator="\n"),
    }
    return texts | ({"selection.md": search.markdown()} if search.selections else {})


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _worth_drawing(ranking: "Ranking | None") -> TypeGuard["Ranking"]:
    """Ranks in a single cell are its order, which the table has."""
    return ranking is not None and len(ranking.cells) > 1


def _draw(  # noqa: PLR0917
    groups: Sequence[Group],
    records: Records,
    ranking: "Ranking | None",
    options: ReportOptions,
    out: Path,
    tell: Progress,
) -> "Figures":
    """Draw and write every figure; each is closed before the next is drawn."""
    from gradsurgery.report.figures.style import method_styles, save
    from gradsurgery.report.page.assemble import Figures
    from gradsurgery.report.page.blocks import PIXELS_PER_INCH, Figure, embedded

    tables = [group.table for group in groups]
    styles = method_styles(method for table in tables for method in table.methods)

    def written(drawing: Drawing) -> Figure:
        tell(f"drawing {drawing.stem}")
        png, svg = save(drawing.figure, out / drawing.stem)
        source = embedded(svg.read_bytes(), png.read_bytes())
        pixels = round(drawing.figure.get_figwidth() * PIXELS_PER_INCH)
        return Figure(source, drawing.alt, drawing.caption, (png.name, svg.name), pixels)

    return Figures(
        examples=[written(drawing) for drawing in draw_example_images(options.examples)],
        accuracies=[written(drawing) for drawing in draw_figure3(groups, styles)],
        batches=[written(drawing) for drawing in draw_figure4(groups, styles)],
        curves=[written(drawing) for drawing in draw_learning_curves(groups, records, styles)],
        ranks=[written(draw_ranking(ranking, tables, styles))] if _worth_drawing(ranking) else [],
    )
