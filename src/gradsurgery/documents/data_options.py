"""The options of a run on its images: which they are, how they are divided and prepared."""

import csv
import re
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import field_validator

from gradsurgery.documents.document import Choices, option, unknown_name
from gradsurgery.errors import ArgumentError

NO_TARGET = "none"
"""The target of a run that holds out no domain, where no domain is called so."""

COLUMN_ROLES = ("path", "image", "label", "domain", "split", "group")
"""What the columns of a table of images are for, and what they are called where nothing is said."""

Classes = Literal["same", "common", "all"]
Resize = Literal["squash", "crop", "pad"]
ClassWeights = Literal["none", "balanced"]
Balance = Literal["none", "classes"]


def percentages(split: str) -> tuple[float, ...] | None:
    """The percentages in "70/10/20", None for another `split`; `ValueError` if they divide nothing.

    >>> percentages("80/10/10"), percentages("lists/fold1")
    ((80.0, 10.0, 10.0), None)
    """
    if not is_drawn(split):
        return None
    parts = tuple(float(part) for part in split.split("/") if re.fullmatch(r"\d+\.?\d*", part))
    if len(parts) != 3 or parts[0] <= 0 or abs(sum(parts) - 100) > 1e-6:
        raise ValueError(
            "must divide into training (above 0), validation and test images by percentages that "
            f"sum to 100, as 70/10/20, found {split!r:.60}"
        )
    return parts


def is_drawn(split: str) -> bool:
    """Whether `split` is percentages, rather than a column or lists."""
    return bool(re.fullmatch(r"[\d.]+(/[\d.]+)+", split)) and not split.startswith(".")


class DataOptions(Choices):
    """What a run is trained and tested on."""

    data: str = option(
        "place",
        "The data set: a built-in name, a folder, a table of paths (CSV, TSV, JSONL), Parquet "
        'files, "hf://owner/name", "pacs", "pacs:PATH", or package.module:Source.',
        free=True,
        min_length=1,
    )
    target: str = option(
        "identity",
        "The domain that is held out; none trains and validates on all.",
        free=True,
        min_length=1,
    )
    layout: str = option(
        "condition",
        'What the paths of a folder\'s images say: "{domain}/{class}/{name}" (the default), '
        '"{class}_{domain}_{id}.jpg", {group} for what stays in one part of the split (a patient), '
        "* for what is of no account, ** for folders.",
        "",
        free=True,
        max_length=500,
    )
    columns: dict[str, str] = option(
        "condition",
        "Other names of a table's columns, as label=species,domain=camera; of path (image in "
        "Parquet files), label, domain and split; and group, whose images stay in one part of the "
        "split, as of a patient.",
        {},
        free=True,
    )
    classes: Classes = option(
        "condition",
        "Where a domain lacks a class: same (refuse the data set), common (leave out what not "
        "every domain has), or all (a domain has no say on the classes that it lacks).",
        "same",
    )
    drop_duplicates: bool = option(
        "condition",
        "Use one of several identical files, and none where their classes differ.",
        False,
        free=True,
    )
    without: list[str] = option(
        "identity", "A source domain to leave out as well, of training and of validation.", []
    )
    split: str = option(
        "condition",
        "Training, validation and test images: percentages (70/10/20, the paper's), column (the "
        "table's column split), or a file or folder that lists them.",
        "70/10/20",
        free=True,
        min_length=1,
    )
    test_on: Literal["test", "all"] = option(
        "condition",
        "The target's images that are tested on: its test part (the paper's), or all of them.",
        "test",
        free=True,
    )
    validation_mean: Literal["images", "domains"] = option(
        "condition",
        "What the validation's loss and accuracy are the mean of: the images of all source domains "
        "together, or the domains, each of which counts as much.",
        "images",
        free=True,
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
    resize: Resize = option(
        "hyperparameter",
        "How images become square: squash (change their proportions), crop (keep the middle), or "
        "pad (keep all of it between white margins).",
        "squash",
        free=True,
    )
    balance: Balance = option(
        "hyperparameter",
        "What is drawn equally often beside the domains, which always are: classes (within every "
        "domain), or none (domains is the same).",
        "none",
        free=True,
    )
    class_weights: ClassWeights = option(
        "hyperparameter",
        "Weights of the classes in every domain's loss: none, or balanced (each as much as the "
        "others, whatever its number of images).",
        "none",
        free=True,
    )
    skip_bad: bool = option("incidental", "Leave out images that cannot be decoded.", False)

    @field_validator("balance", mode="before")
    @classmethod
    def _beside_the_domains(cls, value: Any) -> Any:
        """Domains are always drawn equally often: to ask for it changes nothing."""
        return "none" if value == "domains" else value

    @field_validator("without")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        return sorted(set(value))

    @field_validator("columns", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """A mapping, or "role=name,role=name"; a name with a comma is quoted as in a CSV file."""
        if not isinstance(value, str):
            return value
        pairs = [pair.partition("=") for pair in listed_names(value)]
        if not all(equals for _, equals, _ in pairs):
            raise ValueError("must name columns as label=species,domain=camera")
        return {role.strip(): name.strip() for role, _, name in pairs}

    @field_validator("columns")
    @classmethod
    def _known_roles(cls, value: dict[str, str]) -> dict[str, str]:
        for role, name in value.items():
            if role not in COLUMN_ROLES:
                raise unknown_name("column", role, COLUMN_ROLES)
            if not name:
                raise ValueError(f"{role} has no name; give {role}=NAME")
        named = {r: name for r, name in value.items() if r != name or r == "group"}
        return dict(sorted(named.items()))

    @field_validator("split")
    @classmethod
    def _a_split(cls, value: str) -> str:
        percentages(value)
        return value

    @property
    def reading(self) -> dict[str, Any]:
        """How the data set is read: the arguments of `gradsurgery.open_source` beside its name."""
        names = ("layout", "columns", "classes", "resize")
        return {name: getattr(self, name) for name in names}


def listed_names(text: str) -> list[str]:
    """Names separated by commas, each once; one with a comma in it is quoted as in a CSV file.

    Raises `ArgumentError` where they are none.

    >>> listed_names('photo, "Käse, x",photo')
    ['photo', 'Käse, x']
    """
    try:
        row = next(csv.reader([text], skipinitialspace=True), [])
    except csv.Error as error:  # a line break, a name beyond all measure
        raise ArgumentError(f"this is no list of names: {error}, found {text!r:.80}") from error
    return list(dict.fromkeys(name.strip() for name in row if name.strip()))


def left_out_classes(entries: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Why each class is left out, from all that is said to be left out, and why.

    Not every domain has it (`--classes common`), or none, where its folders hold no image.

    >>> left_out_classes([("class cow", "4 images, none in art"), ("a/class x.txt", "no image")])
    {'cow': '4 images, none in art'}
    """
    return {
        name.removeprefix("class "): why
        for name, why in entries
        if name.startswith("class ") and re.match(r"\d+ images?, none in ", why)
    }


def without_slash(data: str) -> str:
    """A data set as users name it: the same folder with a slash at its end and without.

    >>> without_slash("photos/"), without_slash("/")
    ('photos', '/')
    """
    return data.rstrip("/") if data[1:].endswith("/") else data
