"""Several methods over several cells: average ranks, Friedman's test, Nemenyi's difference."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gradsurgery.errors import ArgumentError
from gradsurgery.results.statistics import SIGNIFICANCE, doubled_midranks

if TYPE_CHECKING:
    from gradsurgery.results.tables import ComparisonTable


@dataclass(frozen=True)
class Ranking:
    """Methods over N cells, best average rank first.

    `ranks` are in [1, k], 1 the best; `statistic` and `p` are Friedman's, None where there are
    fewer than three methods or two cells; two methods whose ranks differ by no more than
    `critical_difference` are not told apart by Nemenyi's test at 0.05, and `cliques` are the
    largest groups of such methods, which a critical-difference diagram joins by a bar. `cells`
    names the cells, `left_out` those that some method lacks.
    """

    methods: tuple[str, ...]
    ranks: tuple[float, ...]
    cells: tuple[str, ...]
    left_out: tuple[str, ...]
    statistic: float | None
    p: float | None
    critical_difference: float
    cliques: tuple[tuple[str, ...], ...]


def rank_methods(tables: "Sequence[ComparisonTable]") -> Ranking | None:
    """The methods' average ranks over the (data set, target) cells of all tables.

    A cell in which some method is absent or not complete is left out and named; None where no cell
    is left or there are fewer than two methods.
    """
    methods = list(dict.fromkeys(method for table in tables for method in table.methods))
    scores = [
        (
            f"{table.name}, {target}",
            {m: cell.mean for (m, t), cell in table.cells.items() if t == target and cell.complete},
        )
        for table in tables
        for target in table.targets
    ]
    return ranking(methods, scores)


def ranking(
    methods: Sequence[str], scores: Sequence[tuple[str, Mapping[str, float | int]]]
) -> Ranking | None:
    """Rank `methods` by the scores of each cell, which has a name; higher is better.

    Only the cells with a score for every method count; the others are listed as left out. None
    where no cell is left, or fewer than two methods.

    >>> scores = [("sketch", {"a": 70, "b": 60}), ("photo", {"a": 90, "b": 90})]
    >>> ranking(["a", "b"], scores).ranks
    (1.25, 1.75)
    """
    full = [(cell, of_cell) for cell, of_cell in scores if set(methods) <= of_cell.keys()]
    if len(methods) < 2 or not full:
        return None
    rows = [[float(of_cell[method]) for method in methods] for _, of_cell in full]
    ranks = dict(zip(methods, average_ranks(rows), strict=True))
    statistic, p = friedman(rows) if len(methods) > 2 and len(full) > 1 else (None, None)
    difference = critical_difference(len(methods), len(full))
    ordered = sorted(methods, key=ranks.__getitem__)
    return Ranking(
        methods=tuple(ordered),
        ranks=tuple(ranks[method] for method in ordered),
        cells=tuple(cell for cell, _ in full),
        left_out=tuple(cell for cell, of in scores if not set(methods) <= of.keys()),
        statistic=statistic,
        p=p,
        critical_difference=difference,
        cliques=tuple(
            tuple(ordered[first : last + 1])
            for first, last in cliques([ranks[method] for method in ordered], difference)
        ),
    )


def average_ranks(rows: Sequence[Sequence[float | int]]) -> list[float]:
    """Mean over the rows (cells) of every column's (method's) rank, 1 the best; ties share theirs.

    >>> average_ranks([[0.9, 0.8, 0.7], [0.9, 0.9, 0.7]])
    [1.25, 1.75, 3.0]
    """
    doubled = [doubled_midranks(-np.asarray(row, dtype=np.float64)) for row in rows]
    return [float(rank) for rank in np.mean(doubled, axis=0) / 2]


def friedman(rows: Sequence[Sequence[float | int]]) -> tuple[float, float]:
    """Friedman's χ² and its p with k − 1 degrees of freedom, corrected for ties.

    χ² = 12 N / (k (k + 1)) · (Σ R_j² − k (k + 1)² / 4), divided by
    1 − Σ (t³ − t) / (N k (k² − 1)) over the groups of t equal values in a row. Every row all
    equal gives 0 and 1.

    rows: N ≥ 2 cells by k ≥ 3 methods; raises `ArgumentError` for fewer.

    Source: Friedman 1937; Demšar 2006, "Statistical comparisons of classifiers over multiple data
    sets", section 3.2.2.
    """
    if len(rows) < 2 or len(rows[0]) < 3:
        found = f"{len(rows)} and {len(rows[0]) if rows else 0}"
        raise ArgumentError(f"Friedman's test needs two cells and three methods, found {found}")
    from scipy.stats import friedmanchisquare

    # Ranks of the row stand for the values, so that rounding errors make no difference.
    ranked = np.array([doubled_midranks(np.asarray(row, dtype=np.float64)) for row in rows])
    if (ranked == ranked[:, :1]).all():
        return 0.0, 1.0
    statistic, p = friedmanchisquare(*ranked.T)
    return float(statistic), float(p)


def critical_difference(methods: int, cells: int, *, level: float = SIGNIFICANCE) -> float:
    """Nemenyi's critical difference of average ranks, q_α √(k (k + 1) / (6 N)).

    q_α is the studentized range's upper α point for k groups and infinite degrees of freedom,
    divided by √2.

    >>> round(critical_difference(4, 14), 2)  # Demšar's example
    1.25

    Source: Nemenyi 1963; Demšar 2006, section 3.2.2 and table 5.
    """
    from scipy.stats import studentized_range

    quantile = float(studentized_range.ppf(1 - level, methods, np.inf)) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * cells))


def cliques(ranks: Sequence[float | int], difference: float) -> list[tuple[int, int]]:
    """First and last place of every largest run, two at least, of ranks within `difference`.

    >>> cliques([1.0, 1.8, 2.5, 4.0], 1.0)
    [(0, 1), (1, 2)]
    """
    found: list[tuple[int, int]] = []
    for first, rank in enumerate(ranks):
        last = max(i for i, other in enumerate(ranks) if other - rank <= difference)
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found
