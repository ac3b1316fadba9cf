"""What a study of gradient similarity leaves behind: `similarity.json`."""

from typing import Any, ClassVar

from pydantic import ConfigDict, Field
from typing_extensions import override

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


class SeedMeasurements(Part):
    """The run of one seed."""

    seed: int
    measurements: list[Measurement] = []


class SimilarityStudy(RunDocument):
    """A study: the same options with several seeds.

    The folder of each of its runs has a file of its own, of that run alone, which grows while it
    trains. `configuration` is that of the first run, `domains` those that are measured, in the data
    set's order, `classes` the data set's.
    """

    file_name: ClassVar[str] = "similarity.json"
    title: ClassVar[str] = "record of gradient similarity"
    cure: ClassVar[str] = "delete it"

    data: str
    domains: list[str]
    classes: list[str]
    options: SimilarityOptions
    runs: list[SeedMeasurements]

    @override
    @classmethod
    def upgraded(cls, content: dict[str, Any]) -> dict[str, Any]:
        """In version 0.1.0 the file of one run had its measurements, and nothing of the data."""
        if isinstance(content.get("configuration"), dict) and "measurements" in content:
            seed, measurements = content["configuration"].get("seed"), content["measurements"]
            content = content | {"runs": [{"seed": seed, "measurements": measurements}]}
            content |= {"data": "", "domains": [], "classes": []}
        return super().upgraded(content)
