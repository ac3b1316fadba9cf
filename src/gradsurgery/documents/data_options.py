"""The options of a run on its images: which they are, how they are divided and prepared."""

from pydantic import field_validator

from gradsurgery.documents.document import Choices
from gradsurgery.documents.options import option

NO_TARGET = "none"
"""The target of a run that holds out no domain, where no domain is called so."""


class DataOptions(Choices):
    """What a run is trained and tested on."""

    data: str = option(
        "place",
        'The data set: a built-in name, a folder, "hf://owner/name", "pacs", "pacs:PATH", or '
        "package.module:Source.",
        free=True,
        min_length=1,
    )
    target: str = option(
        "identity",
        "The domain that is held out; none trains and validates on all.",
        free=True,
        min_length=1,
    )
    without: list[str] = option(
        "identity",
        "A source domain to leave out as well, of training and of validation.",
        [],
    )
    split_seed: int = option(
        "condition",
        "Seed of the split into training, validation and test images.",
        0,
        free=True,
        ge=0,
        le=2**63 - 1,
    )
    split_per_run: bool = option(
        "condition", "Draw the split from the run's own seed.", False, free=True
    )
    image_size: int = option("hyperparameter", "Height and width in pixels.", 224, ge=8, le=2048)
    skip_bad: bool = option("incidental", "Leave out images that cannot be decoded.", False)

    @field_validator("without")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        return sorted(set(value))
