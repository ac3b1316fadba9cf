"""What a study of gradient similarity leaves behind: `similarity.json`."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from gradsurgery.atomic import atomic_file
from gradsurgery.documents.study_file import read_study
from gradsurgery.training import RunConfiguration

SIMILARITY_FILE = "similarity.json"
VERSION = 1
_WHAT = "record of gradient similarity"

Cosines = list[list[float | None]]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Measurement(_Part):
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


class SimilarityOptions(_Part):
    """How a study measures.

    Args:
        every: steps between measurements; the first is before the first step.
        samples_per_domain: images of one class per domain and measurement.
        all_domains: measure the target too, which is not trained on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    every: int = Field(10, ge=1)
    samples_per_domain: int = Field(8, ge=2)
    all_domains: bool = False


class _Versioned(_Part):
    version: int = VERSION

    def save(self, directory: Path) -> None:
        """Write `similarity.json` into `directory`; raises `OutputError`."""
        with atomic_file(directory / SIMILARITY_FILE) as temporary:
            temporary.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


class RunSimilarity(_Versioned):
    """The measurements of one run, which grow while it trains."""

    configuration: RunConfiguration
    options: SimilarityOptions
    measurements: list[Measurement] = []

    @classmethod
    def load(cls, directory: Path) -> "RunSimilarity":
        """Read a run's `similarity.json`; raises `DataError` where it is not one."""
        return read_study(cls, directory / SIMILARITY_FILE, _WHAT, VERSION)

    def missing(self) -> list[int]:
        """The steps without a measurement yet."""
        done = {measurement.step for measurement in self.measurements}
        steps = range(0, self.configuration.iterations + 1, self.options.every)
        return [step for step in steps if step not in done]


class SeedMeasurements(_Part):
    """The run of one seed."""

    seed: int
    measurements: list[Measurement]


class SimilarityStudy(_Versioned):
    """A study: the same options with several seeds.

    `configuration` is that of the first run, `domains` those that the study measures, in the data
    set's order, `classes` the data set's.
    """

    data: str
    domains: list[str]
    classes: list[str]
    configuration: RunConfiguration
    options: SimilarityOptions
    runs: list[SeedMeasurements]

    @classmethod
    def load(cls, directory: Path) -> "SimilarityStudy":
        """Read a study's `similarity.json`; raises `DataError` where it is not one."""
        return read_study(cls, directory / SIMILARITY_FILE, _WHAT, VERSION)
