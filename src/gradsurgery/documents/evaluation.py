"""What a trained model came to on a data set."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from gradsurgery.documents.document import Document, Part
from gradsurgery.documents.record import Count, SkippedFile
from gradsurgery.documents.tally import Tally

EvaluatedPart = Literal["all", "train", "validation", "test"]


class DomainEvaluation(Part):
    """One domain's images: those of the model's classes are counted in `tally`.

    unknown: numbers of images by class, of the classes that the model does not know.
    seen: how many of the images it was trained on; None where that is not known.
    """

    tally: Tally
    unknown: dict[str, Count] = {}
    seen: Count | None = None


class EvaluationFile(Document):
    """A model on the images of a data set.

    model, model_digest: the file, and the beginning of its sha256.
    classes: the model's, in the order of the tallies.
    trained_data, trained_on, target: the data and domains that it was trained on, and the one that
        was held out; None where the model file does not say.
    data, part: what was evaluated: a part of the run's split, or all.
    skipped: images that cannot be decoded.
    """

    file_name: ClassVar[str] = "evaluation.json"
    title: ClassVar[str] = "evaluation of a model"
    cure: ClassVar[str] = "evaluate again"

    model: str
    model_digest: str
    classes: list[str] = Field(min_length=1)
    trained_data: str
    trained_on: list[str] | None
    target: str | None
    data: str
    part: EvaluatedPart = "all"
    domains: dict[str, DomainEvaluation] = Field(min_length=1)
    skipped: list[SkippedFile] = []

    @model_validator(mode="after")
    def _is_of_its_classes(self) -> "EvaluationFile":
        for name, domain in self.domains.items():
            if len(domain.tally.confusion) != len(self.classes):
                raise ValueError(f"domains.{name} is not of {len(self.classes)} classes")
        return self
