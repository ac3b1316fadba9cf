"""A trained model in use: what it says of itself, what it came to, and what a deployment rests on.

The header of `model.safetensors`, `evaluation.json` and `deployment.json`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from gradsurgery.documents.configuration import Precision
from gradsurgery.documents.data_options import Resize
from gradsurgery.documents.document import Document, Part
from gradsurgery.documents.record import Count, Fraction, SkippedFile
from gradsurgery.documents.selection import CriterionName
from gradsurgery.documents.tally import Tally
from gradsurgery.errors import DataError

Name = Annotated[str, Field(min_length=1, max_length=1000)]
Triple = Annotated[list[float], Field(min_length=3, max_length=3)]
Side = Annotated[int, Field(ge=1, le=4096)]
MODEL_FOLDER = "model"
"""In a deployment's folder, beside its runs: the model file, its card and `deployment.json`."""


class ModelDescription(Document):
    """JSON under the key "gradsurgery" in the header of a `model.safetensors`.

    backbone: its name, for `build_backbone`.
    own_backbone: where its code comes from, None for torchvision's, timm's and ours. It is said
        and never imported.
    classes: their names, in the order of the logits.
    mean, std: of the red, green and blue channel, for `normalize`.
    image_size, resize_first: sides in pixels, for `decode_image`, as `resize` is.
    decoder: who decoded the training's images, None for `decode_image`.
    precision: of the forward passes in training and tests.
    data, domains: the data set, and those of its domains that the model was trained on.
    domains_before: those that its initial weights had been trained on (`domains_known`).
    target: the domain held out.
    method, average, seed, step: of the run.
    split_seed: the seed of the split into training, validation and test images.

    Version 1 said neither `resize_first` nor `domains`.
    """

    file_name: ClassVar[str] = "model.safetensors"
    title: ClassVar[str] = "model of gradsurgery"
    cure: ClassVar[str] = "train it again, or copy it again"
    unnumbered = True
    key: ClassVar[str] = "gradsurgery"

    version: int = 2
    backbone: Name
    own_backbone: dict[str, str | None] | None = None
    classes: Annotated[list[Name], Field(min_length=1, max_length=100_000)]
    mean: Triple
    std: Triple
    image_size: Annotated[int, Field(ge=1, le=2048)]
    resize_first: Side | None = None
    resize: Resize = "squash"
    decoder: str | None = None
    precision: Precision = "float32"
    data: str
    domains: list[str] | None = None
    domains_before: list[str] = []
    target: str | None
    method: str
    average: str
    seed: int
    split_seed: int | None = None
    step: Annotated[int, Field(ge=0)]
    written_by: str = ""

    @model_validator(mode="after")
    def _is_usable(self) -> "ModelDescription":
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("classes has a name twice")
        if not min(self.std) > 0 or not all(math.isfinite(1 / value) for value in self.std):
            raise ValueError(f"std must be above 0, found {self.std}")
        return self


def domains_known(metadata: Mapping[str, str], data: str, domains: Sequence[str]) -> list[str]:
    """Those of a data set's domains that weights were trained on, by what their file says.

    metadata: in the header of the file; of one that is no model of this software, or of a data set
        of another name, nothing is known.
    """
    try:
        about = ModelDescription.parsed(metadata[ModelDescription.key], Path("weights"))
    except (KeyError, DataError):
        return []
    if about.data != data:
        return []
    stated = about.domains
    if stated is None:
        stated = [domain for domain in domains if domain != about.target]
    return [domain for domain in domains if domain in {*stated, *about.domains_before}]


EvaluatedPart = Literal["all", "train", "validation", "test"]


class DomainEvaluation(Part):
    """One domain's images: those of the model's classes are counted in `tally`.

    unknown: numbers of images by class, of the classes that the model does not know.
    seen: how many of the images it was trained on; None where that is not known.
    paired: of images that neither this model nor the one that it is compared with was trained on,
        as far as that is known: whether the other has them right (the row: 0 no, 1 yes), and this
        one (the column). None where there is no other.
    """

    tally: Tally
    unknown: dict[str, Count] = {}
    seen: Count | None = None
    paired: Tally | None = None


class EvaluationFile(Document):
    """A model on the images of a data set.

    model, model_digest: the file, and the beginning of its sha256.
    classes: the model's, in the order of the tallies.
    trained_data, trained_on, target: the data and domains that it was trained on, and the one that
        was held out; None where the model file does not say.
    trained_before: the domains that its initial weights had been trained on.
    data, part: what was evaluated: a part of the run's split, or all.
    skipped: images that cannot be decoded.
    against: another model of these classes on the same images, which it is compared with.
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
    trained_before: list[str] = []
    data: str
    part: EvaluatedPart = "all"
    domains: dict[str, DomainEvaluation] = Field(min_length=1)
    skipped: list[SkippedFile] = []
    against: "EvaluationFile | None" = None

    @property
    def tally(self) -> Tally:
        """All domains together."""
        return Tally.merged([domain.tally for domain in self.domains.values()])

    @property
    def paired(self) -> Tally | None:
        """That of all domains together; None where there is no other model."""
        tallies = [each.paired for each in self.domains.values() if each.paired is not None]
        return Tally.merged(tallies) if tallies else None

    @model_validator(mode="after")
    def _is_of_its_classes(self) -> "EvaluationFile":
        for name, domain in self.domains.items():
            if len(domain.tally.confusion) != len(self.classes):
                raise ValueError(f"domains.{name} is not of {len(self.classes)} classes")
            if domain.paired is not None and len(domain.paired.confusion) != 2:
                raise ValueError(f"domains.{name}.paired is not of right and wrong")
        return self


ByDomain = dict[str, list[Fraction]]


class DeploymentCandidate(Part):
    """A method with its settings, tried with every domain left out in turn.

    method: its name.
    options: in which it differs from the defaults, its settings among them.
    unseen: by the domain left out, the accuracy on its test images, one a seed.
    validation: by the domain left out, the accuracy on the validation images of the others.
    lacks: what is missing, "" where nothing is: only then may it be chosen.
    """

    method: str
    options: dict[str, Any]
    unseen: ByDomain
    validation: ByDomain
    lacks: str = ""

    def score(self, criterion: CriterionName, domains: Iterable[str]) -> float:
        """What the criterion makes of the runs that leave out one of `domains`: a mean over all.

        "leave-one-domain-out" takes the accuracy on the domain left out, "training-domain" that on
        the validation images of the domains trained on.
        """
        accuracies = self.unseen if criterion == "leave-one-domain-out" else self.validation
        values = [value for domain in domains for value in accuracies[domain]]
        return math.fsum(values) / len(values)


class ClassRecall(Part):
    """Of the test images of a class in domains left out: how many, and how many were recognised."""

    name: str
    images: Count
    recognised: Count
    predicted: Count


class CopiedTests(Part):
    """Of the test images of a domain left out, those that its runs trained on all the same.

    identical: whose file is one that was trained on; alike: that look like one. Of several seeds'
    splits, those of the one with most.
    """

    domain: str
    images: Count
    identical: Count
    alike: Count = 0


class Deployment(Document):
    """What was chosen for use on a new domain, and what it rests on.

    data: the data set's name; data_digest: of its images.
    domains, classes: their names.
    criterion: by which the candidate was chosen.
    seeds: of the runs.
    candidates: all that were tried, in the plan's order; chosen: the position of one.
    without_it: by domain, the accuracy on it (a mean over the seeds) of the candidate that the
        criterion chooses when the runs that leave it out are not looked at.
    classes_unseen: how the chosen candidate does on the classes of domains left out, over all
        of its runs; empty where the records do not say.
    copied: for every domain left out with test images that were trained on, how many.
    tested: by domain, on how many images it was tested when it was left out; may be empty.
    tested_groups: the same of groups, as patients; empty where images are in none.
    known: the domains that the initial weights of runs which left them out had been trained on.
    doubts: what else makes the images doubtful, in sentences.
    unseen_low: where they are in groups, the lower end of the interval of the chosen candidate's
        accuracy on all those images, a mean over the seeds.
    directory: of the run on all domains, relative to the deployment's.
    """

    file_name: ClassVar[str] = "deployment.json"
    title: ClassVar[str] = "account of a deployment"
    cure: ClassVar[str] = "delete it, and repeat the command that wrote it"

    data: str
    data_digest: str
    domains: list[str]
    classes: list[str]
    criterion: CriterionName
    seeds: list[int]
    candidates: list[DeploymentCandidate]
    chosen: Count
    without_it: dict[str, Fraction]
    classes_unseen: list[ClassRecall] = []
    copied: list[CopiedTests] = []
    tested: dict[str, Count] = {}
    tested_groups: dict[str, Count] = {}
    unseen_low: Fraction | None = None
    known: list[str] = []
    doubts: list[str] = []
    directory: str

    @property
    def candidate(self) -> DeploymentCandidate:
        """The one that was chosen."""
        return self.candidates[self.chosen]

    @model_validator(mode="after")
    def _of_its_domains(self) -> "Deployment":
        if self.chosen >= len(self.candidates):
            raise ValueError(f"chosen is {self.chosen}, and there are {len(self.candidates)}")
        if set(self.candidate.unseen) != set(self.domains) or not self.domains:
            raise ValueError("the chosen candidate was not tried with every domain left out")
        return self
