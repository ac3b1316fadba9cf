"""All the figures that the records of a report give."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gradsurgery.results.groups import Group, batches_pairs
from gradsurgery.results.records import Records, curves_of
from gradsurgery.results.tables import kind_of_cells

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

    from gradsurgery.report.figures.style import MethodStyle
    from gradsurgery.results.comparison import ComparisonTable
    from gradsurgery.results.statistics import Ranking

BOXES = (
    "Each point is a run; the box spans the quartiles, the line in it is the median, the whiskers "
    "reach to the farthest run within 1.5 box lengths."
)


@dataclass(frozen=True)
class Drawing:
    """A figure of the report; `stem` names its files, `alt` says what it shows in words."""

    stem: str
    figure: "Figure"
    caption: str
    alt: str


@dataclass(frozen=True)
class Examples:
    """Images of a data set, uint8 [height, width, 3], one for each (class, domain)."""

    data: str
    classes: Sequence[str]
    domains: Sequence[str]
    images: "Mapping[tuple[str, str], np.ndarray]"


def named(stem: str, names: Sequence[str]) -> list[str]:
    """A file name for each of `names`: the stem alone for one, else with the name in it.

    >>> named("figure3", ["pacs"]), named("figure3", ["pacs", "pacs, batches single"])
    (['figure3'], ['figure3-pacs', 'figure3-pacs-batches-single'])
    """
    if len(names) == 1:
        return [stem]
    slugs = [re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] for name in names]
    return [
        "-".join(
            filter(None, [stem, slug, str(place) if slugs.count(slug) > 1 or not slug else ""])
        )
        for place, slug in enumerate(slugs, start=1)
    ]


def draw_example_images(examples: Sequence[Examples]) -> list[Drawing]:
    """An image of every class and domain, one figure a data set."""
    from gradsurgery.report.figures.examples import draw_examples

    drawings = []
    for stem, each in zip(named("figure1", [e.data for e in examples]), examples, strict=True):
        figure = draw_examples(
            each.images, classes=each.classes, domains=each.domains, title=f"{each.data}: examples"
        )
        caption = f"An image of every class (columns) and domain (rows) of {each.data}."
        alt = f"Images of {each.data}, rows are the domains {listed(each.domains)}."
        drawings.append(Drawing(stem, figure, caption, alt))
    return drawings


def draw_figure3(groups: Sequence[Group], styles: "dict[str, MethodStyle]") -> list[Drawing]:
    """Box plots of the target accuracy, one figure a table."""
    from gradsurgery.report.figures.accuracy import draw_accuracies

    drawings = []
    for stem, group in zip(named("figure3", _names(groups)), groups, strict=True):
        table = group.table
        marks = {
            key: ("*" if cell.significant else "") + ("†" if cell.significant_corrected else "")
            for key, cell in table.cells.items()
        }
        partial = any(not cell.complete for cell in table.cells.values())
        tests = [note for note in table.notes if table.tests and not note.startswith("n=")]
        notes = [
            *(f"{note[0].upper()}{note[1:]}." for note in tests),
            *(["Hollow boxes: seeds are missing; such cells are not tested."] if partial else []),
            *([f"Dashed line: median of {table.baseline}."] if table.tests else []),
        ]
        figure = draw_accuracies(
            group.accuracies(),
            methods=table.methods,
            targets=table.targets,
            seeds=len(table.seeds),
            reference=table.baseline,
            marks=marks,
            styles=styles,
            title=f"{table.name}: target accuracy of the {table.models}",
            note=" ".join(notes),
        )
        alt = (
            f"Box plots of the target accuracy on {table.data}, a panel for each of the targets "
            f"{listed(table.targets)} and a box for each of the methods {listed(table.methods)}; "
            "the table has the means."
        )
        caption = f"Target accuracy by target and method on {table.name}. {BOXES}"
        drawings.append(Drawing(stem, figure, caption, alt))
    return drawings


def draw_figure4(groups: Sequence[Group], styles: "dict[str, MethodStyle]") -> list[Drawing]:
    """Multi-domain against single-domain batches, where the records have both."""
    from gradsurgery.report.figures.batches import draw_batches

    pairs = batches_pairs(groups)
    drawings = []
    for stem, (multi, single) in zip(
        named("figure4", [multi.table.data for multi, _ in pairs]), pairs, strict=True
    ):
        both = [method for method in multi.table.methods if method in single.table.methods]
        targets = [t for t in multi.table.targets if t in single.table.targets]
        if not both or not targets:
            continue
        runs = {
            (method, target, kind): values
            for kind, group in (("multi", multi), ("single", single))
            for (method, target), values in group.accuracies().items()
        }
        figure = draw_batches(
            runs,
            methods=both,
            targets=targets,
            seeds=max(len(multi.table.seeds), len(single.table.seeds)),
            styles=styles,
            title=f"{multi.table.data}: batches of several domains and of one",
        )
        caption = (
            f"The same rules on {multi.table.data} with every step's batches from different "
            "domains, and all from one domain drawn at random (the control of the paper's "
            f"Figure 4). {BOXES}"
        )
        alt = (
            f"Pairs of box plots of the target accuracy on {multi.table.data} for "
            f"{listed(both)}: multi-domain above single-domain batches."
        )
        drawings.append(Drawing(stem, figure, caption, alt))
    return drawings


def draw_learning_curves(
    groups: Sequence[Group], records: Records, styles: "dict[str, MethodStyle]"
) -> list[Drawing]:
    """Loss, validation accuracy and agreement over the steps, one figure a table.

    records: the content of the groups' records by their files.
    """
    from gradsurgery.report.figures.curves import draw_curves

    drawings = []
    for stem, group in zip(named("curves", _names(groups)), groups, strict=True):
        table = group.table
        over = "mean and standard deviation over the seeds" if len(table.seeds) > 1 else "one seed"
        figure = draw_curves(
            _curves(group, records),
            methods=table.methods,
            targets=table.targets,
            styles=styles,
            title=f"{table.name}: learning curves, {over}",
        )
        caption = (
            f"Learning curves on {table.name}, a column a target. The training loss and the "
            "fraction of agreeing components are means over the steps since the validation before; "
            "the band is one standard deviation over the seeds on both sides."
        )
        if any(not cell.complete for cell in table.cells.values()):
            caption += " Where seeds are missing, the line is of those that are there."
        alt = (
            f"Training loss, validation accuracy and, where it was recorded, the fraction of "
            f"agreeing components over the steps, for {listed(table.methods)} and the targets "
            f"{listed(table.targets)}."
        )
        drawings.append(Drawing(stem, figure, caption, alt))
    return drawings


def draw_ranking(
    ranking: "Ranking", tables: "Sequence[ComparisonTable]", styles: "dict[str, MethodStyle]"
) -> Drawing:
    """The critical-difference diagram of a ranking over the cells of the tables."""
    from gradsurgery.report.figures.ranks import draw_ranks

    ranks = dict(zip(ranking.methods, ranking.ranks, strict=True))
    count = len(ranking.cells)
    cells = f"{count} {kind_of_cells(tables)}{'s' if count > 1 else ''}"
    figure = draw_ranks(
        ranks,
        critical_difference=ranking.critical_difference,
        cliques=ranking.cliques,
        styles=styles,
        title=f"Average ranks over {cells}",
        note=f"Methods joined by a bar are not told apart by Nemenyi's test at {ranking.level:g}.",
    )
    caption = (
        f"Average ranks of the methods' means over {cells}, 1 the best. Two methods differ at "
        f"{ranking.level:g} by Nemenyi's test where their ranks are farther apart than the "
        f"critical difference, {ranking.critical_difference:.2f} (Demšar 2006)."
    )
    if ranking.left_out:
        caption += f" Left out, as a method is not complete there: {listed(ranking.left_out)}."
    order = listed([f"{method} {rank:.2f}" for method, rank in ranks.items()])
    return Drawing("critical-difference", figure, caption, f"Average ranks, best first: {order}.")


def listed(names: Iterable[str]) -> str:
    """Names as a sentence has them.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _curves(group: Group, records: Records) -> "pd.DataFrame":
    """The curves of the group's runs, each under the name that its method has in the table."""
    import pandas as pd

    frames = [
        curves_of({path: records[path] for path in map(Path, of_method["record"])}).assign(
            method=method
        )
        for method, of_method in group.runs.groupby("method")
    ]
    return pd.concat(frames, ignore_index=True)


def _names(groups: Sequence[Group]) -> list[str]:
    return [group.table.name for group in groups]
