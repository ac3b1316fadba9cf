"""Comparison tables: accuracy on the target by method and target, each method tested."""

import itertools
import json
import statistics
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from gradsurgery.documents.defaults import built_in
from gradsurgery.documents.plan import rounded, usual_name
from gradsurgery.documents.selection import CRITERIA, Model
from gradsurgery.errors import ArgumentError, DataError
from gradsurgery.results.runs import Plans, by_number, method_order, plans_of
from gradsurgery.results.statistics import (
    SIGNIFICANCE,
    PairedComparison,
    compare_paired,
    corrected,
    least_p,
)
from gradsurgery.seeds import derive_seed

if TYPE_CHECKING:
    import pandas as pd

BASELINE = "deep-all"
DECIMALS = 2
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Cell:
    """Accuracies in percent over runs, in the order of their seeds.

    `planned` counts the seeds of the table. What is not complete is never best, compared or part of
    an average. `best` says whether no method has a higher mean, as printed, for the target, and
    there is another to compare with. `comparison` is with the baseline, in points, None where one
    of the two is not complete. `guessing` counts the runs whose model does hardly better than to
    guess. An `average` has for each seed the mean over the targets.
    """

    values: tuple[float, ...]
    planned: int
    guessing: int = 0
    best: bool = False
    comparison: PairedComparison | None = None
    average: bool = False

    @property
    def runs(self) -> int:
        """How many there are."""
        return len(self.values)

    @property
    def complete(self) -> bool:
        """Whether every seed of the table has its run."""
        return self.runs == self.planned

    @property
    def mean(self) -> float:
        """Over the runs."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """The sample standard deviation (n − 1), None for one run and for an average."""
        return None if self.average or self.runs < 2 else statistics.stdev(self.values)

    @property
    def stars(self) -> str:
        """`*` where it differs from the baseline, `†` where also after Holm's correction."""
        test = self.comparison
        if test is None:
            return ""
        return ("*" if test.significant else "") + ("†" if test.significant_corrected else "")


@dataclass(frozen=True)
class ComparisonTable:
    """Runs of one data set that differ in target, method and seed alone.

    `protocol` is what its runs share, `differences` the part of it in which the tables of the same
    data set differ, and `apart` what a title says of that. `methods` has the baseline first, then
    the order of `method_order`. `cells[method, target]`, target by target, is absent where there
    is no run; `averages[method]` is the mean over the targets, absent where a target's cell is
    absent or not complete, and for all where there is one target. `baseline` is the method that the
    others are tested against, whether it is among `methods` or not. `selection` is the criterion
    that chose the hyperparameters, empty where none did. `own_names` has those
    of methods that are called otherwise here. `frame` has the rows of `runs_frame` that the table
    is made of.
    """

    data: str
    protocol: dict[str, Any]
    differences: dict[str, Any]
    model: Model
    baseline: str
    methods: tuple[str, ...]
    targets: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: dict[tuple[str, str], Cell]
    averages: dict[str, Cell]
    apart: str = ""
    selection: str = ""
    own_names: dict[str, str] = field(default_factory=dict)
    frame: "pd.DataFrame" = field(compare=False, repr=False, kw_only=True)

    @property
    def name(self) -> str:
        """The data set, and what sets the table apart."""
        return self.data + self.apart

    @property
    def title(self) -> str:
        """One line that says what the figures are and how they were tested."""
        count = len(self.seeds)
        over = f"mean ± std over {count} seeds" if count > 1 else "1 seed"
        what = f"{self.name}: target accuracy (%) of the {self.models}, {over}"
        return f"{what}; {self.test}" if self.test else what

    @property
    def models(self) -> str:
        """Whose accuracy it is, and how the hyperparameters were chosen."""
        by = CRITERIA[self.selection].label if self.selection else ""
        return f"{self.model} model" + (f", hyperparameters by {by}" if by else "")

    @property
    def tests(self) -> int:
        """How many cells are tested: the family of Holm's correction."""
        return sum(cell.comparison is not None for cell in self.cells.values())

    @property
    def test(self) -> str:
        """What the methods are tested by, or why they are not; empty for the baseline alone."""
        if set(self.methods) <= {self.baseline}:
            return ""
        if self.baseline not in self.methods:
            return f"no test, for there is no run of {self.baseline}"
        if len(self.seeds) < 2:
            return "no test of one seed"
        if not self.tests:
            return f"no test, for {self.baseline} or all the others lack seeds"
        correction = ", with Holm's correction" if self.tests > 1 else ""
        return f"paired Wilcoxon test against {self.baseline}{correction}"

    @property
    def notes(self) -> list[str]:
        """What the marks in the table mean, and what to beware of, one line each."""
        lines = []
        if self.tests:
            alone = f"*† p < {SIGNIFICANCE} in the table's only test, which needs no correction"
            several = (
                f"* p < {SIGNIFICANCE}, one test taken alone; "
                f"† also after Holm's correction over the table's {self.tests} tests"
            )
            lines.append(alone if self.tests == 1 else several)
            pairs = max(c.comparison.n for c in self.cells.values() if c.comparison is not None)
            if least_p(pairs) >= SIGNIFICANCE:
                lines.append(f"{pairs} seeds cannot give p < {SIGNIFICANCE}, only {least_p(pairs)}")
            elif (least := least_p(pairs, self.tests)) >= SIGNIFICANCE:
                lines.append(
                    f"{pairs} seeds cannot give † over {self.tests} tests, only p = {least:.2g}"
                )
        if any(not cell.complete for cell in self.cells.values()):
            lines.append("n=…: seeds are missing; in no average, rank or test, never the best")
        guessing = list(self._guessing())
        if guessing:
            lines.append(f"hardly better than guessing on their own domains: {', '.join(guessing)}")
        versions: dict[str, set[str]] = {}
        for name, digest in itertools.chain.from_iterable(self.frame.get("code", ())):
            versions.setdefault(name, set()).update([digest] if digest else [])
        if changed := [name for name, digests in versions.items() if len(digests) > 1]:
            lines.append(
                f"the code of {', '.join(sorted(changed))} was changed between these runs, or "
                "during one (sha256 in their records): if it computes another thing now, delete "
                "and repeat the earlier ones"
            )
        caution = built_in(self.data).caution
        return [*lines, caution] if caution else lines

    def _guessing(self) -> Iterator[str]:
        """Whose runs do hardly better than to guess; a method that does so everywhere, once."""
        for method in self.methods:
            cells = {target: self.cells.get((method, target)) for target in self.targets}
            found = {target: cell for target, cell in cells.items() if cell and cell.guessing}
            if len(found) == len(cells) > 1:
                everywhere = sum(cell.guessing for cell in found.values())
                runs = sum(cell.runs for cell in found.values())
                yield f"{method} on every target ({everywhere} of {runs} runs)"
                continue
            for target, cell in found.items():
                yield f"{method} on {target} ({cell.guessing} of {cell.runs} runs)"

    def comparisons(self) -> Iterator[tuple[str, str, PairedComparison]]:
        """Target, method and test of every cell that is tested."""
        for (method, target), cell in self.cells.items():
            if cell.comparison is not None:
                yield target, method, cell.comparison


def compare_runs(
    runs: "pd.DataFrame", model: Model = "best", baseline: str = BASELINE, plans: Plans = ()
) -> list[ComparisonTable]:
    """Tables of `runs_frame`, of the accuracies of the best or the last model.

    Runs whose protocol differs are never in one table: each has its own, which names what sets it
    apart. Runs that leave out source domains (`without`) are in none. The baseline is the first
    method; the others follow as they were planned, without a plan as in the paper.

    The seeds of a table are those of all its runs and of the plans that name some of these; a cell
    that has not all of them is not complete. Every complete cell is compared with the baseline's
    complete cell of the same target, seed by seed: `compare_paired` in points, `p_holm` over all
    comparisons of the table.

    runs: as `runs_frame` gives them, or `selected_runs`.
    baseline: the method that the others are compared with, as its row is called.
    plans: of each sweep; methods, targets and seeds that a plan has for the data set are in the
        table before their runs are.

    Raises `DataError` where all runs hold out two domains.
    """
    compared, baseline = runs[runs["without"].map(len) == 0], usual_name(baseline)
    if len(runs) and compared.empty:
        raise DataError(
            "every run holds out two domains; there is none to compare: finish runs with one"
        )
    tables, place = [], method_order(run for plan in plans for run in plan.values())
    for name, of_data in compared.groupby("data", sort=True):
        found = sorted(of_data.groupby("protocol"), key=lambda each: by_number(str(each[0])))
        groups = [(json.loads(str(key)), group) for key, group in found]
        names = dict.fromkeys(n for protocol, _ in groups for n in protocol)
        first = groups[0][0]
        differing = [n for n in names if any(p.get(n) != first.get(n) for p, _ in groups)]
        texts = {n: rounded([p.get(n) for p, _ in groups]) for n in differing}
        for position, (protocol, group) in enumerate(groups):
            planned = plans_of(group["record"], plans).values()
            of_plan = [run for run in planned if run.data == name and not run.without]
            methods = set(group["method"])
            if len(groups) == 1:  # else nobody knows whose table a planned method's would be
                methods |= {run.method for run in of_plan} - set(group["method_name"])
            targets = {*group["target"], *(run.target for run in of_plan)}
            table = ComparisonTable(
                data=str(name),
                protocol=protocol,
                differences={n: protocol.get(n) for n in differing},
                apart="".join(f", {n} {shown[position]}" for n, shown in texts.items()),
                model=model,
                baseline=baseline,
                methods=tuple(sorted(methods, key=lambda m: (m != baseline, place(m)))),
                targets=tuple(d for d in group["domains"].iloc[0] if d in targets),
                seeds=tuple(sorted({*map(int, group["seed"]), *(run.seed for run in of_plan)})),
                cells={},
                averages={},
                selection=protocol.get("selection", ""),
                frame=group,
            )
            tables.append(_filled(table))
    return tables


def _filled(table: ComparisonTable) -> ComparisonTable:
    """The table with its cells, their tests, and their averages."""
    planned = len(table.seeds)
    runs_of = dict(iter(table.frame.sort_values("seed").groupby(["method", "target"])))
    cells: dict[tuple[str, str], Cell] = {}
    for target, method in itertools.product(table.targets, table.methods):
        if (runs := runs_of.get((method, target))) is not None:
            percent = 100 * runs[f"{table.model}_target_accuracy"]
            guessing = int(runs[f"{table.model}_guessing"].sum())
            cells[method, target] = Cell(tuple(percent.tolist()), planned, guessing)
    averages: dict[str, Cell] = {}
    for method in table.methods if len(table.targets) > 1 else ():
        row = [cells.get((method, target)) for target in table.targets]
        whole = [cell.values for cell in row if cell is not None and cell.complete]
        if len(whole) == len(row):
            means = map(statistics.fmean, zip(*whole, strict=True))
            averages[method] = Cell(tuple(means), planned, average=True)
    marked: dict[tuple[str, str], Cell] = {}
    for target in table.targets:
        marked |= _marked({key: cell for key, cell in cells.items() if key[1] == target})
    return replace(table, cells=_tested(table, marked), averages=_marked(averages))


def _tested(
    table: ComparisonTable, cells: dict[tuple[str, str], Cell]
) -> dict[tuple[str, str], Cell]:
    """The cells with the comparisons of those that are complete, as the baseline's is."""
    complete = {key for key, cell in cells.items() if cell.complete and len(table.seeds) > 1}
    others = {
        (method, target): cells[table.baseline, target].values
        for method, target in cells
        if method != table.baseline and {(method, target), (table.baseline, target)} <= complete
    }
    seed = derive_seed(0, "bootstrap")
    tests = [compare_paired(cells[key].values, base, seed=seed) for key, base in others.items()]
    family = dict(zip(others, corrected(tests), strict=True))
    return {key: replace(cell, comparison=family.get(key)) for key, cell in cells.items()}


def _marked(cells: dict[Key, Cell]) -> dict[Key, Cell]:
    """The cells, those complete of the highest mean as printed marked as best; one alone is not."""
    means = [round(cell.mean, DECIMALS) for cell in cells.values() if cell.complete]
    if len(means) < 2:
        return cells
    return {
        key: replace(cell, best=cell.complete and round(cell.mean, DECIMALS) == max(means))
        for key, cell in cells.items()
    }


def rename_methods(
    tables: Sequence[ComparisonTable], names: Mapping[str, str]
) -> list[ComparisonTable]:
    """The tables with methods called as a paper calls them, in the same order.

    Raises `ArgumentError` for a method that is in no table, and for two of one name.
    """
    known = {method for table in tables for method in (*table.methods, table.baseline)}
    called = [names.get(method, method) for method in known]
    if (lost := set(names) - known) or len(set(called)) < len(called):
        wrong = f"there is no {min(lost)}" if lost else "two would have one name"
        raise ArgumentError(f"cannot rename methods: {wrong}; there are {', '.join(sorted(known))}")

    def renamed(table: ComparisonTable) -> ComparisonTable:
        new = {method: names.get(method, method) for method in (*table.methods, table.baseline)}
        return replace(
            table,
            baseline=new[table.baseline],
            methods=tuple(new[method] for method in table.methods),
            cells={(new[m], target): cell for (m, target), cell in table.cells.items()},
            averages={new[m]: cell for m, cell in table.averages.items()},
            own_names={name: method for method, name in new.items()},
            frame=table.frame.assign(method=table.frame["method"].map(new)),
        )

    return [renamed(table) for table in tables]


def batches_pairs(
    tables: Sequence[ComparisonTable],
) -> list[tuple[ComparisonTable, ComparisonTable]]:
    """Pairs (multi, single) of tables whose protocols differ in `batches` alone."""
    return [
        (multi, single)
        for multi, single in itertools.permutations(tables, 2)
        if multi.data == single.data
        and multi.protocol.get("batches", "multi") == "multi"
        and single.protocol == {**multi.protocol, "batches": "single"}
    ]
