"""What a study of gradient similarity leaves behind: `similarity.json`."""

from typing import ClassVar

from pydantic import ConfigDict, Field

from gradsurgery.documents.configuration import RunDocument
from gradsurgery.documents.document import Part

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


class SimilarityOptions(Part):
    """How a study measures.

    Args:
        every: steps between measurements; the first is before the first step.
        samples_per_domain: images of one class per domain and measurement.
        all_domains: measure the target too, which is not trained on.
    """

    model_config = ConfigDict(frozen=True)

    every: int = Field(10, ge=1)
    samples_per_domain: int = Field(8, ge=2)
    all_domains: bool = False


class _SimilarityFile(RunDocument):
    file_name: ClassVar[str] = "similarity.json"
    title: ClassVar[str] = "record of gradient similarity"
    cure: ClassVar[str] = "delete it"

    options: SimilarityOptions


class RunSimilarity(_SimilarityFile):
    """The measurements of one run, which grow while it trains."""

    measurements: list[Measurement] = []

    def missing(self) -> list[int]:
        """The steps without a measurement yet."""
        done = {measurement.step for measurement in self.measurements}
        steps = range(0, self.configuration.iterations + 1, self.options.every)
        return [step for step in steps if step not in done]


class SeedMeasurements(Part):
    """The run of one seed."""

    seed: int
    measurements: list[Measurement]


class SimilarityStudy(_SimilarityFile):
    """A study: the same options with several seeds.

    `configuration` is that of the first run, `domains` those that the study measures, in the data
    set's order, `classes` the data set's.
    """

    data: str
    domains: list[str]
    classes: list[str]
    runs: list[SeedMeasurements]
