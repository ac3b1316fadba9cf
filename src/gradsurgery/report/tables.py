"""Comparisons, with the paper's figures beside them, and selections as tables and as CSV."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.selection import CRITERIA, Candidate, Choice, Selection, Summary
from gradsurgery.report.section import ABSENT, Entry, Table, counted, listed, plain_table
from gradsurgery.results.selection import Edge, edges
from gradsurgery.results.statistics import PairedComparison
from gradsurgery.results.tables import DECIMALS, Cell, ComparisonTable

if TYPE_CHECKING:
    import pandas as pd


CITATION = "Mansilla et al. 2021, Table 1"
_AS_IN_THE_PAPER = ("layout", "columns", "split_seed")  # whatever they are
_MOST_NAMED = 6
_TESTS = [
    *("data", "target", "method", "difference (points)", "95 % interval"),
    *("p", "p (Holm)", "effect size", "n", "zeros"),
]
_NARROW = (
    "an interval leaves out zero where p is not below 0.05: bootstrap percentiles of so few seeds "
    "are too narrow; trust p"
)
_TEST_COLUMNS = {
    "difference": "difference_points",
    "low": "interval_low_points",
    "high": "interval_high_points",
    **{name: name for name in ("p", "p_holm", "effect_size")},
    "n": "pairs",
    "zeros": "zeros",
}


class PaperFigure(NamedTuple):
    """Accuracy in percent; `significant` is the paper's star; an average has no `std`."""

    mean: float
    std: float | None
    significant: bool


@cache
def paper_figures() -> dict[tuple[str, str, str], PaperFigure]:
    """The figures of the paper's Table 1 by data set, target and method, as they are called here.

    AlexNet, 20 runs a cell, Wilcoxon tests against Deep-All at 0.05.

    >>> paper_figures()["pacs", "sketch", "agr-sum"]
    PaperFigure(mean=57.35, std=3.29, significant=True)

    Source: Mansilla, Echeveste, Milone, Ferrante, "Domain generalization via gradient surgery",
    ICCV 2021.
    """
    with Path(__file__).with_name("paper_table1.csv").open(encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file)
    return {
        (data, target, method): PaperFigure(float(mean), float(std), star == "1")
        for data, target, method, mean, std, star in rows
    }


def paper_row(table: ComparisonTable, method: str) -> list[PaperFigure | None]:
    """The paper's figures for a row of `table`: its targets, and the average where there is one.

    Empty where the paper has no figure for the method on any of the targets; the average is there
    where it has one for each.
    """
    figures, own = paper_figures(), table.own_names.get(method, method)
    found = [figures.get((table.data, target, own)) for target in table.targets]
    present = [figure for figure in found if figure is not None]
    if not present:
        return []
    if len(table.targets) < 2:
        return found
    mean = sum(figure.mean for figure in present) / len(present)
    complete = len(present) == len(found)
    return [*found, PaperFigure(mean, None, False) if complete else None]


def comparison_table(table: ComparisonTable, *, paper: bool = False) -> Table:
    """A row a method, a column a target, and their average where there are several.

    A star and a dagger mark what differs from the baseline, as the notes say. `paper` puts the
    paper's figures beside those of every method that it has.
    """
    rows, several = [], len(table.targets) > 1
    for method in table.methods:
        cells = [table.cells.get((method, target)) for target in table.targets]
        cells += [table.averages.get(method)] if several else []
        beside = paper_row(table, method) if paper else []
        below = [_paper_text(figure) for figure in beside] or [""] * len(cells)
        entries = [_entry(cell, text) for cell, text in zip(cells, below, strict=True)]
        rows.append([Entry(method, below="paper" if beside else ""), *entries])
    notes = table.notes
    if any(row[0].below for row in rows):
        notes = [*notes, f"paper: {CITATION}, with its stars at p < 0.05{_departures(table)}"]
    elif paper:
        notes = [*notes, f"paper: {CITATION}, has no figure for these methods on {table.data}"]
    columns = ["method", *table.targets, *(["average"] if several else [])]
    return Table(table.title, columns, rows, notes)


def _departures(table: ComparisonTable) -> str:
    """Where the runs are not set as the paper's were, in brackets what those had."""
    known, found = RunConfiguration.model_fields, []
    for name, value in table.protocol.items():
        # initial weights from a file are known by its hash
        same = value != "none" if name == "weights" else name in _AS_IN_THE_PAPER
        if name in known and not same and value != known[name].default:
            found.append(f"{name} {value} ({known[name].default})")
    return f"; the runs here differ from those (in brackets) in {', '.join(found)}" if found else ""


def significance_table(tables: Sequence[ComparisonTable]) -> Table:
    """The statistics behind the stars, a row a test; of one table its name is in the caption."""
    rows = []
    for table in tables:
        for target, method, test in table.comparisons():
            difference = [signed(test.difference), f"[{signed(test.low)}, {signed(test.high)}]"]
            p = Entry(p_text(test.p), "*" if test.significant else "")
            p_holm = Entry(p_text(test.p_holm), "†" if test.significant_corrected else "")
            rest = [signed(test.effect_size), str(test.n), str(test.zeros)]
            about = map(Entry, [table.name, target, method, *difference])
            rows.append([*about, p, p_holm, *map(Entry, rest)])
    first = 1 if len(tables) == 1 else 0
    of = f"{tables[0].name}: differences" if first else "Differences"
    from_ = listed(dict.fromkeys(table.baseline for table in tables)) if tables else "the baseline"
    caption = f"{of} from {from_} on the same seeds"
    tests = [test for table in tables for _, _, test in table.comparisons()]
    narrow = any(not test.low <= 0 <= test.high and not test.significant for test in tests)
    notes = [_NARROW] if narrow else []
    return Table(caption, _TESTS[first:], [row[first:] for row in rows], notes)


def signed(value: float | int) -> str:
    """A difference: `+1.20`, `-0.40`, and `+0.00` for all that is printed as zero."""
    return f"{value:+z.{DECIMALS}f}"


def p_text(p: float) -> str:
    """A p-value with two significant digits, `0.041` or `1.9e-06`."""
    return f"{p:.2g}"


def choices_table(selections: Mapping[str, Selection], caption: str = "") -> Table:
    """A row for every choice, the criteria of one choice below each other.

    Of several criteria, those that choose nothing anywhere are told of in the notes alone.
    """
    columns = ["data", "target", "method", "criterion", "chosen", "score (%)", "target (%)"]
    void = unavailable(selections)
    shown = {name: each for name, each in selections.items() if name not in void}
    rows = [[*about, *_chosen(choice)] for about, choice in _by_choice(shown)]
    notes = [*void.values(), *choice_cautions(selections)]
    return plain_table(caption, columns, rows, notes=notes)


def unavailable(selections: Mapping[str, Selection]) -> dict[str, str]:
    """Those of several criteria that choose nothing, all for one reason, and a sentence of it."""
    found = {}
    for name, selection in selections.items():
        reasons = {_chosen(choice)[0] for choice in selection.choices}
        if len(reasons) == 1 and all(each.candidate is None for each in selection.choices):
            found[name] = f"{CRITERIA[name].label} is {reasons.pop()}."
    return found if len(found) < len(selections) else {}


def candidates_table(selections: Mapping[str, Selection], caption: str = "") -> Table:
    """A row for every candidate of every choice, in the order of the plan."""
    columns = ["data", "target", "method", "criterion", "candidate", "score (%)", "n", "verdict"]
    rows = []
    for about, choice in _by_choice(selections):
        for position, candidate in enumerate(choice.candidates):
            lacks = f"not eligible: lacks {candidate.lacks}" if candidate.lacks else ""
            scored = [_percent(candidate.score), str(candidate.score.n if candidate.score else 0)]
            verdict = "chosen" if position == choice.chosen else lacks
            rows.append([*about, _values(candidate, choice), *scored, verdict])
    return plain_table(caption, columns, rows)


def choice_cautions(selections: Mapping[str, Selection]) -> list[str]:
    """What to beware of in choices, in sentences.

    Which are at the edge of what was tried, a sentence a value, but for those by the target; and
    where the oracle's target accuracy is of images that it chose by.
    """
    attainable = {name: each for name, each in selections.items() if each.attainable}
    found: dict[Edge, list[str]] = {}
    for (data, target, method, criterion), choice in _by_choice(attainable):
        for edge in edges(choice):
            found.setdefault(edge, []).append(f"{method} on {target} ({data}, {criterion})")
    sentences = []
    for edge, chosen in found.items():
        more = len(chosen) - _MOST_NAMED
        named = [*chosen[:_MOST_NAMED], *([f"{more} more"] if more > 0 else [])]
        end, beyond = ("largest", "larger") if edge.largest else ("smallest", "smaller")
        sentences.append(
            f"{edge.name} {_short(edge.value)}, chosen for {listed(named)}, is the {end} of "
            f"{edge.tried} values tried: widen the grid, for a {beyond} one may do better."
        )
    oracles = [each for each in selections.values() if not each.attainable]
    choices = [choice for each in oracles for choice in each.choices if choice.candidate]
    if any(choice.conditions.get("test_on") == "all" for choice in choices):
        sentences.append(
            "With --test-on all the validation images of the target, by which the oracle chooses, "
            "are among the images that its target accuracy is of."
        )
    return sentences


def comparison_csv(tables: Sequence[ComparisonTable], *, paper: bool = False) -> str:
    """One line a cell, unrounded, with a header; averages have an empty target.

    `std_percent` is empty for one run and for averages, the columns of the test where nothing was
    tested; what sets the tables of a data set apart has columns of its own, as have the criterion
    that selected the hyperparameters and, with `paper`, the paper's figures.
    """
    import pandas as pd

    differing = dict.fromkeys(name for table in tables for name in table.differences)
    selected = any(table.selection for table in tables)
    rows: list[dict[str, Any]] = []
    for table in tables:
        about: dict[str, Any] = {"dataset": table.data}
        about |= {name: table.differences.get(name) for name in differing}
        about |= {"selection": table.selection} if selected else {}
        averages = {(method, ""): cell for method, cell in table.averages.items()}
        for (method, target), cell in (table.cells | averages).items():
            row = about | {
                "model": table.model,
                "target": target,
                "method": method,
                "mean_accuracy_percent": cell.mean,
                "std_percent": cell.std,
                "runs": cell.runs,
                "planned": cell.planned,
                "complete": int(cell.complete),
                "best": int(cell.best),
                "baseline": table.baseline,
            }
            row |= {name: getattr(cell.comparison, of, None) for of, name in _TEST_COLUMNS.items()}
            if paper:
                own = table.own_names.get(method, method)
                figure = paper_figures().get((table.data, target, own))
                row["paper_mean_percent"] = figure and figure.mean
                row["paper_std_percent"] = figure and figure.std
                row["paper_significant"] = figure and int(figure.significant)
            rows.append(row)
    return _csv(pd.DataFrame(rows, dtype=object))


def significance_csv(tables: Sequence[ComparisonTable]) -> str:
    """One line a test, unrounded: the fields of `PairedComparison`, in points."""
    import pandas as pd

    names = [each.name for each in fields(PairedComparison)]
    rows = [
        [table.name, target, method, table.baseline, *astuple(test)]
        for table in tables
        for target, method, test in table.comparisons()
    ]
    return _csv(pd.DataFrame(rows, columns=["data", "target", "method", "baseline", *names]))


def _csv(frame: "pd.DataFrame") -> str:
    return str(frame.to_csv(index=False, lineterminator="\n"))


def _entry(cell: Cell | None, below: str) -> Entry:
    """`71.25 ± 1.06` and behind it `*†`, or (n=…) where seeds lack."""
    if cell is None:
        return Entry(ABSENT, below=below)
    marks = cell.stars + ("" if cell.complete else f" (n={cell.runs} of {cell.planned})")
    return Entry(_figures(cell.mean, cell.std), marks, below, strong=cell.best)


def _paper_text(figure: PaperFigure | None) -> str:
    if figure is None:
        return ABSENT
    return _figures(figure.mean, figure.std) + ("*" if figure.significant else "")


def _figures(mean: float, std: float | None) -> str:
    return f"{mean:.{DECIMALS}f}" + ("" if std is None else f" ± {std:.{DECIMALS}f}")


def _by_choice(selections: Mapping[str, Selection]) -> list[tuple[list[str], Choice]]:
    """What names a choice, and the choice; the same choice of every criterion together."""
    found: dict[tuple[str, ...], list[tuple[list[str], Choice]]] = {}
    for criterion, selection in selections.items():
        for choice in selection.choices:
            same = (choice.data, choice.target, choice.method)
            beside = [
                c.conditions for c in selection.choices if (c.data, c.target, c.method) == same
            ]
            shared = choice.conditions.items()
            apart = [f"{n} {v}" for n, v in shared if any(of.get(n) != v for of in beside)]
            method = ", ".join([choice.method, *apart])
            about = [choice.data, choice.target, method, CRITERIA[criterion].label]
            found.setdefault((*same, str(choice.conditions)), []).append((about, choice))
    return [row for rows in found.values() for row in rows]


def _chosen(choice: Choice) -> list[str]:
    unfinished = counted(choice.unfinished, "planned run", "is not finished")
    waiting = f"; {unfinished}" if choice.unfinished else ""
    if choice.candidate is None:
        return [f"not available: needs {choice.needs}{waiting}", ABSENT, ABSENT]
    count = len(choice.candidates)
    of = f" (of {count})" if count > 1 else ""
    chosen = f"{_values(choice.candidate, choice)}{of}{waiting}"
    result, seeds = _percent(choice.target_accuracy), len(choice.seeds)
    if choice.target_accuracy is not None and choice.target_accuracy.n < seeds:
        result += f" (n={choice.target_accuracy.n} of {seeds})"
    return [chosen, _percent(choice.candidate.score), result]


def _values(candidate: Candidate, choice: Choice) -> str:
    """The hyperparameters that were searched."""
    if not choice.searched:
        return "the only candidate"
    texts = []
    for name in choice.searched:
        value = candidate.hyperparameters.get(name)
        texts.append(f"{name} {'default' if value is None else _short(value)}")
    return ", ".join(texts)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _percent(score: Summary | None) -> str:
    if score is None:
        return ABSENT
    return _figures(100 * score.mean, score.std and 100 * score.std)
