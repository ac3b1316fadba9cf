"""What the study of tasks against domains leaves behind: `tasks-vs-domains.json`."""

from typing import Any, ClassVar, Literal, get_args

from pydantic import ConfigDict, Field, field_validator, model_validator

from gradsurgery.documents.document import Choices, Document, Part
from gradsurgery.errors import ArgumentError

Grouping = Literal["tasks", "tasks-apart", "domains", "dealt"]
"""What the groups are whose gradients a rule combines.

tasks: group d has task d, on all images of the step.
tasks-apart: group d has task d, on images of the step that are dealt out at random.
domains: every group has the first task, group d on the images of domain d.
dealt: every group has the first task, on images of the step that are dealt out at random.
"""

GROUPINGS: tuple[Grouping, ...] = get_args(Grouping)

TURNED: tuple[Grouping, ...] = ("tasks", "domains")
"""The groupings in which dials are turned, where a study has them."""

DIALS = ("groups", "batch_size", "noise", "contradiction", "scale")
"""Options that a study may turn, one at a time."""


class TasksOptions(Choices):
    """What is trained, and how it is measured."""

    model_config = ConfigDict(extra="ignore")

    data: str = Field("rotated-digits", description="The data set.")
    target: str = Field(
        "75", description="The domain that is not trained on. Default: 75, of coded digits random."
    )
    tasks: list[str] = Field(
        ["class", "parity", "size", "domain", "loop"],
        min_length=1,
        description="class, domain, parity, size, loop, animal, or NAME=CLASS|CLASS: is it one of "
        "these? The first is that of the domains.",
    )
    groups: int = Field(4, ge=2, description="Source domains, and tasks (default: 4).")
    batch_size: int = Field(12, ge=1, description="Images per source domain and step.")
    noise: float = Field(
        0.0, ge=0, description="Length of the noise added to a gradient, by that of the gradient."
    )
    contradiction: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the training images that every group but the first is told a wrong "
        "class of, each another one.",
    )
    scale: float = Field(
        1.0,
        gt=0,
        description="How many times the last group's loss the first one's counts, the others in "
        "equal steps between.",
    )
    groupings: list[Grouping] = Field(
        list(GROUPINGS), min_length=1, description="tasks, tasks-apart, domains, dealt."
    )
    rules: list[str] = Field(
        ["sum", "pcgrad", "agr-sum"],
        min_length=1,
        description="Rules to train with; it is measured along the steps of the first.",
    )
    backbone: str = Field("small-cnn", description="As of a run.")
    weights: str = Field("none", description="As of a run: default, none, or a file.")
    image_size: int = Field(
        10, ge=4, description="Side of the images in pixels. Default: 10, of coded digits 16."
    )
    iterations: int = Field(150, ge=1, description="Training steps.")
    learning_rate: float = Field(3e-3, gt=0, description="Of Adam.")
    measure_at: list[int] = Field(
        [0, 20, 60], description="Steps to measure at; the last one always is."
    )
    repeats: int = Field(4, ge=2, description="Batches of every group in a measurement.")
    evaluated: int = Field(
        400, ge=1, description="At most so many images of a domain make a loss or an accuracy."
    )
    classes: Literal["same", "common"] = Field(
        "same",
        description="Where a domain lacks a class: same (refuse the data set), or common (leave "
        "out what not every domain has).",
    )
    skip_bad: bool = Field(False, description="Leave out images that cannot be decoded.")

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, options: Any) -> Any:
        """Coded digits have a domain that is meant as the target, and no room in fewer pixels."""
        if isinstance(options, dict) and str(options.get("data")).startswith("coded-digits"):
            return {"target": "random", "image_size": 16, **options}
        return options

    @field_validator("tasks", "groupings", "rules")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        return list(dict.fromkeys(value))

    @property
    def measured_steps(self) -> list[int]:
        """The steps to measure at, up to the last, in order."""
        wanted = {step for step in self.measure_at if 0 <= step < self.iterations}
        return sorted({*wanted, self.iterations})

    def turned(self, dial: str, value: float | int) -> "TasksOptions":
        """These options with one of the dials at another value."""
        if dial not in DIALS:
            raise ArgumentError(f"unknown dial {dial!r}; there are {', '.join(DIALS)}")
        whole = isinstance(type(self).model_fields[dial].default, int)
        if whole and value != int(value):
            raise ArgumentError(f"{dial} is a whole number, found {value:g}")
        return TasksOptions(**self.model_dump() | {dial: int(value) if whole else float(value)})


class LayerCosines(Part):
    """Mean cosines of the groups' gradients in a layer, or in all parameters that groups share.

    name: of the layers.
    components: how many there are.
    within: of two batches of one group.
    across: of two groups in one step.
    expected: the same of what the gradients are expected to be, without the noise of batches;
        an estimate, which may leave [-1, 1].
    negative: share of the pairs of two groups in one step whose inner product is negative.
    """

    name: str
    components: int
    within: float | None
    across: float | None
    expected: float | None
    negative: float | None


class RuleEffect(Part):
    """What a rule makes of the sum s of the groups' gradients: u, and takes away r = s − u.

    rule: its name.
    length: ‖u‖ / ‖s‖.
    cosine: of u and s.
    removed: ‖r‖ / ‖s‖.
    alike: cosine of r in one batch with r in another; None where nothing is taken away.
    curvature: r·Hr / r·r, where H is the Hessian of the sum of the losses.
    """

    rule: str
    length: float | None
    cosine: float | None
    removed: float | None
    alike: float | None
    curvature: float | None


class Measured(Part):
    """The gradients of the groups after `step` steps.

    step: steps done.
    shared: cosines over all parameters that the groups share.
    within_deciles, across_deciles: the 1st, 5th and 9th decile of the single pairs' cosines.
    layers: from the input to the output.
    effects: of every rule but the sum.
    curvature_sum: s·Hs / s·s along the sum.
    curvature_random: the same along a random direction, which is tr(H) / P on average.
    """

    step: int
    shared: LayerCosines
    within_deciles: list[float]
    across_deciles: list[float]
    layers: list[LayerCosines]
    effects: list[RuleEffect]
    curvature_sum: float | None
    curvature_random: float | None


class TasksRun(Part):
    """One run: a grouping, a rule, a seed, and the dial that is turned.

    losses: mean training loss of the groups at the measured steps.
    held_out: accuracy by task on test images of the source domains.
    unseen: accuracy by task on images of the target domain, which has no task `domain`.
    measured: along the steps of the study's first rule; else empty.
    """

    grouping: Grouping
    rule: str
    dial: str | None
    value: float | None
    seed: int
    losses: list[float]
    held_out: dict[str, float]
    unseen: dict[str, float]
    measured: list[Measured]

    @property
    def cell(self) -> tuple[Any, ...]:
        """Which of the study's runs it is."""
        return (self.grouping, self.rule, self.dial, self.value, self.seed)


class TasksStudy(Document):
    """The study: its options, and the runs that are finished.

    options: of every run, but for the dial that is turned.
    seeds: of the runs with no dial turned.
    dials: values by dial.
    dial_seeds: of the runs with a dial turned.
    name: of the data set.
    digest: of its images: another release of a set may have others.
    domains: that were trained on where no dial is turned.
    tasks: their names; the first is that of the domains.
    runs: those with no dial turned first, then by dial, value and seed.
    """

    file_name: ClassVar[str] = "tasks-vs-domains.json"
    title: ClassVar[str] = "study of tasks against domains"
    cure: ClassVar[str] = "delete it"

    version: int = 2
    options: TasksOptions
    seeds: list[int]
    dials: dict[str, list[float]] = {}
    dial_seeds: list[int] = []
    name: str
    digest: str
    domains: list[str]
    tasks: list[str]
    runs: list[TasksRun]

    @classmethod
    def upgraded(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Without the runs of version 1, whose measurements had batches that shared no image.

        It did not say which images they were of either; the same command makes them anew.
        """
        return content if content["version"] > 1 else content | {"digest": "", "runs": []}
