"""What a deployment leaves behind: `deployment.json`."""

import math
from collections.abc import Iterable
from typing import Any, ClassVar

from pydantic import model_validator

from gradsurgery.documents.document import Document, Part
from gradsurgery.documents.record import Count, Fraction
from gradsurgery.documents.selection import CriterionName

ByDomain = dict[str, list[Fraction]]


class DeploymentCandidate(Part):
    """A method with its settings, tried with every domain left out in turn.

    Args:
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

    Args:
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
