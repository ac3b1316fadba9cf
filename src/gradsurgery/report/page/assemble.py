"""The page of a report, put together from its parts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gradsurgery.report.drawing import listed
from gradsurgery.report.page.blocks import Details, Figure, Text, plain_table
from gradsurgery.report.page.render import Page, Section, render_page
from gradsurgery.report.page.sections import (
    absent_section,
    configuration_section,
    results_section,
    runs_section,
    statistics_section,
)
from gradsurgery.report.page.studies import study_sections
from gradsurgery.report.page.summary import counted, summarize
from gradsurgery.results.grid_search import ALL, Search, provisional
from gradsurgery.results.groups import Group
from gradsurgery.results.inventory import Inventory
from gradsurgery.results.selection import (
    CHOICE_HEADER,
    CRITERIA,
    EVIDENCE_HEADER,
    choice_rows,
    evidence_rows,
)

if TYPE_CHECKING:
    from gradsurgery.results.statistics import Ranking


@dataclass(frozen=True)
class Figures:
    """The pictures of a page; `accuracies` and `curves` are one a table."""

    examples: Sequence[Figure]
    accuracies: Sequence[Figure]
    batches: Sequence[Figure]
    curves: Sequence[Figure]
    ranks: Sequence[Figure]

    @property
    def files(self) -> list[str]:
        """The names of the pictures' files."""
        every = (*self.examples, *self.accuracies, *self.batches, *self.curves, *self.ranks)
        return [name for figure in every for name in figure.files]


@dataclass(frozen=True)
class Contents:
    """Everything that a page tells."""

    inventory: Inventory
    groups: Sequence[Group]
    ranking: "Ranking | None"
    search: Search
    figures: Figures
    notes: Sequence[str] = ()


def assemble(contents: Contents, folder: Path, *, paper: bool) -> str:
    """The page as HTML; its links lead from `folder` to the records."""
    inventory, groups, figures = contents.inventory, contents.groups, contents.figures
    tables = [group.table for group in groups]
    data = listed(dict.fromkeys(table.data for table in tables))
    accuracies = [[figure] for figure in figures.accuracies]
    summary = [
        *summarize(inventory, tables, contents.ranking),
        *_search_sentence(contents.search),
        *contents.notes,
    ]
    sections = [
        results_section(groups, accuracies, paper=paper),
        Section("batches", "Batches of several domains and of one", figures.batches),
        statistics_section(groups, figures.ranks),
        Section("curves", "Learning curves", figures.curves),
        _selection_section(contents.search),
        *study_sections(inventory.paths),
        Section("examples", "Example images", figures.examples),
        absent_section(inventory),
        configuration_section(inventory),
        runs_section(inventory, folder),
    ]
    origin = (
        f"From {counted(len(inventory.records), 'record')} in "
        f"{listed([path.as_posix() for path in inventory.paths])}."
    )
    return render_page(Page(f"Domain generalization on {data}", origin, summary, sections))


def _search_sentence(search: Search) -> list[str]:
    if not search.selections:
        return []
    if search.used == ALL:
        return [
            "The runs differ in hyperparameters; each setting is compared by itself, and what each "
            "criterion of model selection would choose is under Model selection."
        ]
    criterion = CRITERIA[search.used]
    (used,) = (each for each in search.selections if each.criterion == search.used)
    early = provisional(used)
    return [
        f"{'Hyperparameters were searched; the' if search.tried_several else 'The'} tables and "
        f"figures have what {criterion.label} chooses: {criterion.score}.",
        *([early] if early else []),
    ]


def _selection_section(search: Search) -> Section:
    """What each criterion chose, with its evidence."""
    if not search.selections:
        return Section("selection", "Model selection", [])
    criteria = [f"{criterion.label}: {criterion.score}." for criterion in CRITERIA.values()]
    choices = plain_table(
        "What each criterion chooses",
        CHOICE_HEADER,
        choice_rows(search.selections),
        notes=criteria,
        left=[1, 2, 3, 4],
    )
    evidence = plain_table(
        "All candidates", EVIDENCE_HEADER, evidence_rows(search.selections), left=[1, 2, 3, 4, 7]
    )
    introduction = Text(
        "The criteria of Gulrajani & Lopez-Paz 2021. Only the oracle looks at the target domain: "
        "it is what an unattainable choice would give, and no result."
    )
    details = Details("The scores of all candidates", [evidence])
    return Section("selection", "Model selection", [introduction, choices, details])
