"""What a diagnosis leaves behind: `diagnosis.json`."""

from typing import ClassVar

from pydantic import ConfigDict, Field

from gradsurgery.documents.document import Choices, Document, Part

Numbers = list[float | None]


class GroupConflict(Part):
    """The domains' conflict in a group of layers, or in the whole network: means over batches.

    Fractions are of the components that move, those in which any domain's gradient is not zero. A
    number is None where nothing moves, or a gradient is zero.

    Args:
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

    Args:
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
    part = "option"

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

    Args:
        step: steps done.
        agreeing: fraction of the components that agree.
        cosine: mean over the pairs of domains.
        groups: `agreeing` by groups of layers, where the run logged its steps.
    """

    step: list[int] = []
    agreeing: Numbers = []
    cosine: Numbers = []
    groups: dict[str, Numbers] = {}


class Diagnosis(Document):
    """Where the domains of a data set conflict, for one network.

    Args:
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
