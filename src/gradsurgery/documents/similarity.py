"""What a study of gradient similarity leaves behind: `similarity.json`."""

from typing import Any, ClassVar

from pydantic import ConfigDict, Field

from gradsurgery.documents.configuration import RunDocument
from gradsurgery.documents.document import Choices, Part

Cosines = list[list[float | None]]


class Measurement(Part):
    """The similarity of the samples' gradients after `step` steps of training.

    Args:
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


class SimilarityOptions(Choices):
    """How a study measures."""

    model_config = ConfigDict(extra="ignore")
    part = "option"

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
    runs: list[SeedMeasurements]
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
