"""What studies of a network leave behind: similarity, diagnosis and explanation."""

from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, model_validator

from gradsurgery.documents.configuration import RunDocument
from gradsurgery.documents.document import Choices, Document, Part, check_lengths
from gradsurgery.errors import ArgumentError

Cosines = list[list[float | None]]


def _check_square(cosines: Cosines, domains: int) -> None:
    check_lengths(domains, ("cosines", cosines), *(("cosines", row) for row in cosines))


class Measurement(Part):
    """The similarity of the samples' gradients after `step` steps of training.

    step: steps done.
    label: the class that all samples are of.
    domains: that were measured.
    cosines: mean cosine in [-1, 1] by pairs of these domains; None where no pair is left.
    within: mean over the domains; None where there is none.
    across: mean over the pairs of different domains; None where there is none.
    skipped: domains left out, and why.
    """

    step: int
    label: str
    domains: list[str] = []
    cosines: Cosines = []
    within: float | None = None
    across: float | None = None
    skipped: dict[str, str] = {}

    @model_validator(mode="after")
    def _of_its_domains(self) -> "Measurement":
        _check_square(self.cosines, len(self.domains))
        return self


class SimilarityOptions(Choices):
    """How a study measures."""

    model_config = ConfigDict(extra="ignore")

    every: int = Field(
        10, ge=1, description="Steps between measurements; the first is before the first step."
    )
    samples_per_domain: int = Field(
        8, ge=2, description="Images of one class per domain and measurement, 2 or more."
    )
    all_domains: bool = Field(
        False, description="Measure the held-out domain as well, which is not trained on."
    )


class SeedMeasurements(Part):
    """The run of one seed; its measurements grow while it trains."""

    seed: int
    measurements: list[Measurement]


class SimilarityStudy(RunDocument):
    """A study: the same options with several seeds, or one of its runs.

    `configuration` is that of the first run, `domains` those that the study measures, in the data
    set's order, `classes` the data set's. A `part` is of one run, in whose folder it lies: the
    study's file has its measurements too.
    """

    file_name: ClassVar[str] = "similarity.json"
    title: ClassVar[str] = "record of gradient similarity"
    cure: ClassVar[str] = "delete it"

    options: SimilarityOptions
    data: str
    domains: list[str]
    classes: list[str]
    runs: list[SeedMeasurements] = Field(min_length=1)
    part: bool = False

    @classmethod
    def upgraded(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Of a run of version 0.1.0, whose file had its measurements alone."""
        if "measurements" not in content or not isinstance(content.get("configuration"), dict):
            return content
        run = {"seed": content["configuration"].get("seed", 0)}
        run["measurements"] = content.pop("measurements")
        about = {"data": content["configuration"].get("data"), "domains": [], "classes": []}
        return about | content | {"runs": [run], "part": True}

    def missing(self) -> list[int]:
        """The steps at which the first run has no measurement yet."""
        done = {measurement.step for measurement in self.runs[0].measurements}
        steps = range(0, self.configuration.iterations + 1, self.options.every)
        return [step for step in steps if step not in done]


Numbers = list[float | None]


class GroupConflict(Part):
    """The domains' conflict in a group of layers, or in the whole network: means over batches.

    Fractions are of the components that move, those in which any domain's gradient is not zero. A
    number is None where nothing moves, or a gradient is zero.

    name: of the layers.
    components: how many there are.
    moving: fraction of them that move.
    agreeing: fraction in which all signs are the same (equation 2), what Agr-Sum keeps.
    against_rest: per domain, fraction in which its sign is not that of the others' sum.
    cosines: by pairs of domains.
    cosine_with_rest: per domain, cosine with the sum of the others.
    kept_length: length of Agr-Sum's update by that of the sum.
    """

    name: str
    components: int
    moving: float
    agreeing: float | None
    against_rest: Numbers
    cosines: list[Numbers]
    cosine_with_rest: Numbers
    kept_length: float | None


class Snapshot(Part):
    """The conflict after `step` steps of training.

    step: steps done.
    total: the whole network.
    groups: its groups of layers, from the input to the output.
    most_conflicting: the domain with the lowest of `total.cosine_with_rest`.
    times_most: in how many batches its cosine was the lowest.
    stands_out: whether its mean cosine is further below the next than chance explains, at 5 %;
        None in a diagnosis written before this was asked.
    shuffled_agreeing: `agreeing` of the same images dealt out to the domains at random: what is
        lost to small batches alone.
    shuffled_cosine: mean cosine of the pairs then.
    """

    step: int
    total: GroupConflict
    groups: list[GroupConflict]
    most_conflicting: str
    times_most: int
    stands_out: bool | None = None
    shuffled_agreeing: float | None
    shuffled_cosine: float | None


class DiagnosisOptions(Choices):
    """How a diagnosis measures."""

    model_config = ConfigDict(extra="ignore")

    repeats: int = Field(
        4, ge=1, description="Batches of every domain over which the means are taken."
    )
    batch_size: int = Field(32, ge=1, description="Images per domain in each.")
    seed: int = Field(0, ge=0, description="Of the images drawn.")
    every: int = Field(10, ge=1, description="Steps between measurements where it trains.")
    by_layer: bool = Field(False, description="Measure every layer by itself, rather than blocks.")
    all_domains: bool = Field(False, description="Measure the held-out domain as well.")


class LoggedConflict(Part):
    """What a run says of its own: of each step that it logged, or means up to each validation.

    Its fractions are of the components that are not zero in every domain. (Runs of version 0.1.0
    counted a component that is zero everywhere as one that agrees.)

    step: steps done.
    agreeing: fraction of the components that agree.
    cosine: mean over the pairs of domains.
    groups: `agreeing` by groups of layers, where the run logged its steps.
    """

    step: list[int] = []
    agreeing: Numbers = []
    cosine: Numbers = []
    groups: dict[str, Numbers] = {}

    @model_validator(mode="after")
    def _of_one_length(self) -> "LoggedConflict":
        values = ("agreeing", self.agreeing), ("cosine", self.cosine)
        check_lengths(len(self.step), *values, *self.groups.items())
        return self


class Diagnosis(Document):
    """Where the domains of a data set conflict, for one network.

    data: the data set's name.
    domains: that were measured.
    target: the domain held out, None where there is none.
    network: what was looked at, in words.
    options: how.
    snapshots: by step.
    logged: of the run that was looked at, None where there is none.
    """

    file_name: ClassVar[str] = "diagnosis.json"
    title: ClassVar[str] = "diagnosis"
    cure: ClassVar[str] = "delete it"

    data: str
    domains: list[str]
    target: str | None
    network: str
    options: DiagnosisOptions
    snapshots: list[Snapshot]
    logged: LoggedConflict | None = None

    @classmethod
    def upgraded(cls, content: dict[str, Any]) -> dict[str, Any]:
        """As it is; only one that has just begun is without a snapshot, and in no file yet."""
        if content.get("snapshots") == []:
            raise ArgumentError("snapshots is empty, expected one at least")
        return content

    @model_validator(mode="after")
    def _of_its_domains(self) -> "Diagnosis":
        count = len(self.domains)
        for snapshot in self.snapshots:
            if snapshot.most_conflicting not in self.domains:
                raise ValueError(f"most_conflicting is no domain, {snapshot.most_conflicting!r}")
            for group in (snapshot.total, *snapshot.groups):
                by_domain = ("cosine_with_rest", group.cosine_with_rest)
                check_lengths(count, ("against_rest", group.against_rest), by_domain)
                _check_square(group.cosines, count)
        return self


class ExplanationOptions(Choices):
    """How answers are explained."""

    by: Literal["auto", "grad-cam", "integrated-gradients"] = Field(
        "auto",
        description="How: grad-cam, integrated-gradients, or auto (Grad-CAM where the network has "
        "convolutions).",
    )
    per_domain: int = Field(
        6, ge=1, le=50, description="Images shown per domain; half of them wrong where there are."
    )
    points: int = Field(
        1000, ge=10, le=20_000, description="Images in the map of features, over all domains."
    )
    seed: int = Field(0, ge=0, le=2**63 - 1, description="Of the choice of images and the map.")


class Answer(Part):
    """What the model says of an image.

    identity: "domain/class/file", or its path.
    domain, label: None where they are not known.
    predicted: the class of the highest probability.
    """

    identity: str
    domain: str | None = None
    label: str | None = None
    predicted: str
    probability: float


class Place(Part):
    """Where an image's features lie on the map."""

    domain: str
    label: str
    predicted: str
    x: float
    y: float


class Explanation(Document):
    """Images with what their answers rest on (the figure beside has the pictures), and a map.

    model: what the model is called; data: the images' set; target: the domain held out, if any.
    by: how answers were explained.
    """

    file_name: ClassVar[str] = "explanation.json"
    title: ClassVar[str] = "explanation of a model"
    cure: ClassVar[str] = "make it again with `gradsurgery explain`"

    model: str
    data: str
    target: str | None = None
    by: str
    classes: list[str]
    domains: list[str]
    shown: list[Answer]
    places: list[Place] = []

    def neighbours(self, share: Literal["label", "domain"]) -> tuple[float, float]:
        """Of how many images the nearest on the map shares that, and how many would by chance."""
        nearest = nearest_others(np.array([[place.x, place.y] for place in self.places]))
        own = np.array([getattr(place, share) for place in self.places])
        _, counts = np.unique(own, return_counts=True)
        by_chance = (counts * (counts - 1)).sum() / (len(own) * (len(own) - 1))
        return float((own == own[nearest]).mean()), float(by_chance)


def nearest_others(spots: Float64[np.ndarray, "points 2"]) -> Int64[np.ndarray, " points"]:
    """The position of each point's nearest other point."""
    from scipy.spatial import KDTree

    _, found = KDTree(spots).query(spots, k=2)
    own = np.arange(len(spots))
    # of points at one place, a point itself need not be the first
    nearest: NDArray[np.int64] = np.where(found[:, 0] == own, found[:, 1], found[:, 0])
    return nearest
