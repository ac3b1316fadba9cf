"""What a model selection and a report leave behind: `selection.json`, `files.json`."""

import math
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import field_validator

from gradsurgery.documents.document import Document, Part

Model = Literal["best", "last"]
CriterionName = Literal["training-domain", "leave-one-domain-out", "oracle"]


class Criterion(NamedTuple):
    """A way to choose hyperparameters; `model` is whose target accuracy results from it."""

    name: CriterionName
    score: str
    model: Model
    attainable: bool

    @property
    def label(self) -> str:
        """The name, with a warning where the criterion looks at the target."""
        return self.name if self.attainable else f"{self.name} (not attainable)"


CRITERIA: dict[str, Criterion] = {
    criterion.name: criterion
    for criterion in (
        Criterion(
            "training-domain",
            "accuracy of the best model on the validation images of the source domains",
            "best",
            attainable=True,
        ),
        Criterion(
            "leave-one-domain-out",
            "accuracy on each source domain of the best model trained without it, averaged",
            "best",
            attainable=True,
        ),
        Criterion(
            "oracle",
            "accuracy of the last model on the validation images of the target domain",
            "last",
            attainable=False,
        ),
    )
}
"""The criteria of Gulrajani & Lopez-Paz 2021, "In search of lost domain generalization", sec. 3."""


class Summary(Part):
    """Mean and sample standard deviation (None for one) of `n` fractions in [0, 1]."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Summary":
        """Of at least one value."""
        n = len(values)
        mean = math.fsum(values) / n
        squares = math.fsum((value - mean) ** 2 for value in values)
        return cls(mean=mean, std=math.sqrt(squares / (n - 1)) if n > 1 else None, n=n)


class Candidate(Part):
    """Hyperparameters that were tried, and how they score over the seeds they have a score for.

    `lacks` says what is missing, empty where nothing is: only then may the candidate be chosen.
    """

    hyperparameters: dict[str, Any]
    score: Summary | None
    lacks: str

    @property
    def eligible(self) -> bool:
        """Whether the candidate has a score for every seed."""
        return not self.lacks


class Choice(Part):
    """One choice among the candidates for a data set, target, method and backbone.

    `conditions` are the options that no search chooses among (initial weights, the split, …);
    `searched` names the hyperparameters in which the candidates differ; `chosen` is a position in
    `candidates`, None where `needs` says what is absent; `target_accuracy` is what came of it,
    None where its runs are absent; `unfinished` counts planned runs without a record.
    """

    data: str
    target: str
    method: str
    backbone: str
    conditions: dict[str, Any]
    searched: list[str]
    seeds: list[int]
    candidates: list[Candidate]
    chosen: int | None
    needs: str
    target_accuracy: Summary | None
    unfinished: int

    @property
    def candidate(self) -> Candidate | None:
        """The one that was chosen."""
        return None if self.chosen is None else self.candidates[self.chosen]


class Selection(Part):
    """What one criterion chose everywhere."""

    score: str
    attainable: bool
    choices: list[Choice]


class Selections(Document):
    """`selection.json`: by criterion, what was chosen, with its evidence."""

    file_name: ClassVar[str] = "selection.json"
    title: ClassVar[str] = "model selection"
    cure: ClassVar[str] = "delete it and run gradsurgery select again"

    criteria: dict[str, Selection]


class ReportFiles(Document):
    """`files.json`: the names of the files that a report wrote into its folder."""

    file_name: ClassVar[str] = "files.json"
    title: ClassVar[str] = "list of a report's files"
    cure: ClassVar[str] = "delete it"

    files: list[str]

    @field_validator("files")
    @classmethod
    def _within_the_folder(cls, value: list[str]) -> list[str]:
        for name in value:
            if PurePath(name).name != name:
                raise ValueError(f"must be names of files, found {name!r:.80}")
        return value
