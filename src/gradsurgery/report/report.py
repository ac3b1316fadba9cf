"""What is written about finished runs and studies: tables, figures, and a page of them all."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gradsurgery.atomic import check_folder, write_text
from gradsurgery.documents.deployment import EvaluationFile
from gradsurgery.documents.plan import usual_name
from gradsurgery.documents.selection import Model, ReportFiles
from gradsurgery.documents.studies import Diagnosis, Explanation, SimilarityStudy
from gradsurgery.documents.tasks_vs_domains import TasksStudy
from gradsurgery.errors import ArgumentError, DataError
from gradsurgery.report.evaluation_text import evaluation_section, explanation_section
from gradsurgery.report.gradients_text import diagnosis_section, similarity_csv, similarity_section
from gradsurgery.report.page_sections import PIXELS_PER_INCH, assemble
from gradsurgery.report.rendering import section_markdown, to_latex, to_markdown
from gradsurgery.report.section import Figure, Section, embedded, listed
from gradsurgery.report.summary import cells_text
from gradsurgery.report.tables import (
    candidates_table,
    choices_table,
    comparison_csv,
    comparison_table,
    significance_csv,
    significance_table,
)
from gradsurgery.results.ranking import Ranking, rank_methods
from gradsurgery.results.runs import Inventory, Records, take_inventory
from gradsurgery.results.selection import Search, search_of
from gradsurgery.results.tables import (
    BASELINE,
    ComparisonTable,
    batches_pairs,
    compare_runs,
    rename_methods,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure as FigureDrawn

    from gradsurgery.report.figures.pictures import Examples, Explained
    from gradsurgery.report.figures.style import Drawing

PAGE_FILE = "report.html"
Tell = Callable[[str], object]
"""Is told in a line what is done next."""


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
    first, notes: sentences to begin the summary with, and to end it.
    names: of methods, as tables and figures are to call them.
    """

    model: Model | None = None
    baseline: str = BASELINE
    paper: bool = False
    selected: str | None = None
    examples: "Sequence[Examples]" = ()
    first: Sequence[str] = ()
    notes: Sequence[str] = ()
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What was written, and the comparisons that it has."""

    page: Path
    tables: list[ComparisonTable]


def write_report(
    folder: Path | Sequence[Path] | Inventory,
    out: Path | None = None,
    options: ReportOptions | None = None,
    progress: Tell = lambda line: None,
) -> Report:
    """Write tables, figures and `report.html` of the runs in `folder`.

    Written are table1.md, .tex and .csv, statistics.md and .csv, every figure that the records
    give as PNG, SVG and PDF, selection.md where hyperparameters were searched, and the page. Each
    file is there whole or not at all, the page comes last; the same records give the same bytes.
    files.json lists them: those that an earlier report wrote and this one does not are removed.

    Args:
        folder: of runs, or several, or what was found there.
        out: where to write; by default the folder `report` in (the first) `folder`.
        options: what to show.
        progress: called with a line on what is done next.

    Raises `DataError` for a folder without records and for records that cannot be used,
    `ArgumentError` for a baseline that is no method of the runs, `OutputError`.
    """
    options = options or ReportOptions()
    progress("reading records")
    found = [folder] if isinstance(folder, Path) else folder
    inventory = found if isinstance(found, Inventory) else take_inventory(found)
    out = out or inventory.paths[0] / "report"
    check_folder(out)
    search = search_of(inventory, options.selected)
    model = options.model or search.model
    tables = compare_runs(search.runs, model, options.baseline, inventory.plans)
    _check_baseline(usual_name(options.baseline), tables)
    tables = rename_methods(tables, options.names)
    ranking = rank_methods(tables)
    listed_before = (out / ReportFiles.file_name).exists()
    earlier = set(ReportFiles.load(out).files) if listed_before else set()
    texts = _texts(tables, search, paper=options.paper)
    for name, text in texts.items():
        write_text(out / name, text)
    from gradsurgery.report.figures.style import save

    figures: dict[str, list[Figure]] = {
        kind: [] for kind in ("examples", "accuracies", "batches", "curves", "ranks")
    }
    for kind, stem, drawing in _drawn(tables, inventory.records, ranking, options.examples):
        progress(f"drawing {stem}")
        png, svg, pdf = save(drawing.figure, out / stem)
        pixels = round(drawing.figure.get_figwidth() * PIXELS_PER_INCH)
        source, names = embedded(svg.read_bytes(), png.read_bytes()), (png.name, svg.name, pdf.name)
        figures[kind].append(Figure(source, drawing.alt, drawing.caption, names, pixels))
    progress("writing the page")
    drawn = [name for of_kind in figures.values() for figure in of_kind for name in figure.files]
    files = sorted({*texts, *drawn, PAGE_FILE})
    for name in earlier - set(files):  # of other runs, or under the names that figures had then
        (out / name).unlink(missing_ok=True)
    ReportFiles(files=files).save(out)
    page = assemble(
        out,
        inventory,
        tables,
        ranking,
        search,
        figures=figures,
        first=options.first,
        notes=[*options.notes, *_renamed(options.names)],
        paper=options.paper,
    )
    write_text(out / PAGE_FILE, page)
    return Report(out / PAGE_FILE, tables)


def _renamed(names: Mapping[str, str]) -> list[str]:
    """A sentence on what methods are called, where they are called otherwise."""
    called = [f"{method} is called {name}" for method, name in names.items()]
    return [f"In tables and figures {listed(called)}."] if called else []


def write_diagnosis(diagnosis: Diagnosis, directory: Path) -> list[str]:
    """Write `diagnosis.json`, tables and figures into `directory`; what there is to say of them."""
    from gradsurgery.report.figures.heat_maps import conflict_figures

    diagnosis.save(directory)
    figures = conflict_figures(diagnosis)
    said = _write_study(directory, diagnosis_section(diagnosis), figures)
    return [*said, f"tables and figures: {directory}"]


def write_evaluation(evaluation: EvaluationFile, directory: Path) -> Sequence[str]:
    """Write `evaluation.json`, tables and figures into `directory`; what there is to say."""
    from gradsurgery.report.figures.heat_maps import confusion_figure, reliability_figure

    tally = evaluation.tally
    title = f"{evaluation.data}, {listed(evaluation.domains)}"
    figures = {"evaluation-confusion": confusion_figure(tally, evaluation.classes, title)}
    if tally.calibration:
        figures["evaluation-reliability"] = reliability_figure(tally, title)
    evaluation.save(directory)
    return _write_study(directory, evaluation_section(evaluation), figures)


def write_similarity(study: SimilarityStudy, directory: Path) -> list[str]:
    """Write tables and the figure into `directory`; what there is to say of them."""
    from gradsurgery.report.figures.lines import draw_similarity

    write_text(directory / "similarity.csv", similarity_csv(study))
    figures = {"similarity": draw_similarity(study)}
    said = _write_study(directory, similarity_section(study), figures)
    figure, data = directory / "similarity.png", directory / study.file_name
    return [*said, f"figure: {figure}", f"measurements: {data}"]


def write_explanation(
    explanation: Explanation, shown: "Sequence[Explained]", directory: Path
) -> list[str]:
    """Write `explanation.json`, sentences and figures; what there is to say of them."""
    from gradsurgery.report.figures.pictures import draw_attributions, draw_places

    name = explanation.model
    figures = {"explanation-answers": draw_attributions(shown, name, explanation.by)}
    if explanation.places:
        figures["explanation-features"] = draw_places(explanation)
    said = _write_study(directory, explanation_section(explanation), figures)
    explanation.save(directory)
    return [*said, f"figures: {directory}"]


def write_tasks_study(study: TasksStudy, directory: Path) -> list[str]:
    """Write tables and figures; what there is to say. `DataError` without a finished run."""
    from gradsurgery.report.figures.tasks import draw_dials, draw_tasks
    from gradsurgery.report.tasks_text import tasks_section

    if not study.runs:
        raise DataError(f"{study.name}: no run of the study is finished; repeat its command")
    figures = {"tasks-vs-domains": draw_tasks(study)}
    if (turned := draw_dials(study)) is not None:
        figures["tasks-vs-domains-dials"] = turned
    said = _write_study(directory, tasks_section(study), figures)
    return [*said, f"tables and figures: {directory} (tasks-vs-domains.png)"]


def _write_study(
    directory: Path, section: Section, figures: "Mapping[str, FigureDrawn]"
) -> Sequence[str]:
    """Write the section, under its name, and the figures, by theirs; the section's sentences."""
    from gradsurgery.report.figures.style import save

    write_text(directory / f"{section.identity}.md", section_markdown(section))
    for name, figure in figures.items():
        save(figure, directory / name)
    return section.sentences


def file_stems(stem: str, names: Sequence[str]) -> list[str]:
    """A file name for each of `names`: the stem alone for one, else with the name in it.

    >>> file_stems("figure3", ["pacs"]), file_stems("figure3", ["pacs", "pacs, batches single"])
    (['figure3'], ['figure3-pacs', 'figure3-pacs-batches-single'])
    """
    if len(names) == 1:
        return [stem]
    slugs = [re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] for name in names]
    apart = len(set(slugs)) == len(slugs) and all(slugs)  # else all are numbered: "a-1" is a name
    numbers = [""] * len(slugs) if apart else map(str, range(1, len(slugs) + 1))
    return [
        "-".join(filter(None, [stem, slug, number]))
        for slug, number in zip(slugs, numbers, strict=True)
    ]


def _drawn(
    tables: Sequence[ComparisonTable],
    records: Records,
    ranking: Ranking | None,
    examples: "Sequence[Examples]",
) -> "Iterator[tuple[str, str, Drawing]]":
    """Kind, file name and drawing of every figure, each drawn when it is asked for."""
    from gradsurgery.report.figures.comparisons import draw_accuracies, draw_batches, draw_ranks
    from gradsurgery.report.figures.lines import draw_learning_curves
    from gradsurgery.report.figures.pictures import draw_examples
    from gradsurgery.report.figures.style import method_styles

    styles = method_styles(method for table in tables for method in table.methods)
    names = [table.name for table in tables]
    for stem, each in zip(file_stems("figure1", [e.data for e in examples]), examples, strict=True):
        yield "examples", stem, draw_examples(each)
    for stem, table in zip(file_stems("figure3", names), tables, strict=True):
        yield "accuracies", stem, draw_accuracies(table, styles)
    pairs = batches_pairs(tables)
    stems = file_stems("figure4", [multi.data for multi, _ in pairs])
    for stem, (multi, single) in zip(stems, pairs, strict=True):
        if (drawing := draw_batches(multi, single, styles)) is not None:
            yield "batches", stem, drawing
    for stem, table in zip(file_stems("curves", names), tables, strict=True):
        yield "curves", stem, draw_learning_curves(table, records, styles)
    if ranking is not None and len(ranking.cells) > 1:  # in one, the table has the order
        cells = cells_text(ranking, tables)
        yield "ranks", "critical-difference", draw_ranks(ranking, cells, styles)


def _check_baseline(baseline: str, tables: Iterable[ComparisonTable]) -> None:
    methods = sorted({method for table in tables for method in table.methods})
    if baseline != BASELINE and baseline not in methods:
        raise ArgumentError(
            f"the baseline {baseline!r} is no method of these runs; they have {', '.join(methods)}"
        )


def _texts(tables: Sequence[ComparisonTable], search: Search, *, paper: bool) -> dict[str, str]:
    """The files that are text, by name."""
    comparisons = [comparison_table(table, paper=paper) for table in tables]
    texts = {
        "table1.md": to_markdown(comparisons),
        "table1.tex": to_latex(comparisons),
        "table1.csv": comparison_csv(tables, paper=paper),
        "statistics.md": to_markdown([significance_table(tables)]),
        "statistics.csv": significance_csv(tables),
    }
    if search.selections:
        choices = choices_table(search.selections, "Model selection")
        candidates = candidates_table(search.selections, "Candidates")
        texts["selection.md"] = to_markdown([choices, candidates])
    return texts
