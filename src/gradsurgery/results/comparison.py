"""What a comparison table holds, and what it says of itself."""

from dataclasses import dataclass
from typing import Any, Literal

from gradsurgery.results.selection import CRITERIA
from gradsurgery.results.statistics import SIGNIFICANCE, PairedComparison, least_p

Model = Literal["best", "last"]
DECIMALS = 2


@dataclass(frozen=True)
class Cell:
    """Accuracy in percent over runs.

    `std` is the sample standard deviation (n - 1), None for one run and for an average of
    targets. `planned` counts the seeds of the table; `complete` says whether each is in `runs`.
    What is not complete is never best, compared or part of an average. `best` says whether no
    method has a higher mean, as printed, for the target, and there is another to compare with.
    `comparison` is with the baseline, in points, None where one of the two is not complete.
    """

    mean: float
    std: float | None
    runs: int
    planned: int
    complete: bool
    best: bool
    comparison: PairedComparison | None = None

    @property
    def significant(self) -> bool:
        """Whether the method and the baseline differ, this test taken alone: the star."""
        return self.comparison is not None and self.comparison.significant

    @property
    def significant_corrected(self) -> bool:
        """Whether they differ after Holm's correction over the table: the dagger."""
        return self.comparison is not None and self.comparison.significant_corrected


@dataclass(frozen=True)
class ComparisonTable:
    """Runs of one data set that differ in target, method and seed alone.

    `settings` are those in which the tables of the same data set differ, empty where there is one.
    `cells[method, target]` is absent where there is no run; `averages[method]` is the mean over
    the targets, absent where a target's cell is absent or not complete, and for all where there is
    one target. `baseline` is the method that the others are tested against, whether it is among
    `methods` or not. `selection` is the criterion that chose the hyperparameters, empty where none
    did.
    """

    data: str
    settings: dict[str, Any]
    model: Model
    baseline: str
    methods: tuple[str, ...]
    targets: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: dict[tuple[str, str], Cell]
    averages: dict[str, Cell]
    selection: str = ""

    @property
    def name(self) -> str:
        """The data set, and the settings that set the table apart."""
        return self.data + "".join(f", {name} {value}" for name, value in self.settings.items())

    @property
    def title(self) -> str:
        """One line that says what the figures are and how they were tested."""
        count = len(self.seeds)
        over = f"mean ± std over {count} seeds" if count > 1 else "1 seed"
        what = f"{self.name}: target accuracy (%) of the {self.models}, {over}"
        return f"{what}; {self._test}" if self._test else what

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
    def notes(self) -> list[str]:
        """What the marks in the table mean, one line each."""
        lines = []
        if self.tests:
            lines.append(
                f"* p < {SIGNIFICANCE}, one test taken alone; "
                f"† also after Holm's correction over the table's {self.tests} tests"
            )
            pairs = max(c.comparison.n for c in self.cells.values() if c.comparison is not None)
            if least_p(pairs) >= SIGNIFICANCE:
                lines.append(f"{pairs} seeds cannot give p < {SIGNIFICANCE}, only {least_p(pairs)}")
            elif self.tests * least_p(pairs) >= SIGNIFICANCE:
                lines.append(
                    f"{pairs} seeds cannot give † over {self.tests} tests, only "
                    f"p = {self.tests * least_p(pairs):.2g}"
                )
        if any(not cell.complete for cell in self.cells.values()):
            lines.append("n=…: seeds are missing; in no average, rank or test, never the best")
        return lines

    @property
    def _test(self) -> str:
        if set(self.methods) <= {self.baseline}:
            return ""
        if self.baseline not in self.methods:
            return f"no test, for there is no run of {self.baseline}"
        if len(self.seeds) < 2:
            return "no test of one seed"
        if not self.tests:
            return f"no test, for {self.baseline} or all the others lack seeds"
        return f"paired Wilcoxon test against {self.baseline}, with Holm's correction"
