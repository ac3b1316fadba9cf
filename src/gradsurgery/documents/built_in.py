"""The built-in data sets: where their runs start, and what to know of their results."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class BuiltInData:
    """A data set that is made here.

    options: of a run, where it does not say otherwise.
    caution: what a reader of its results should know, in one line; empty for nothing.
    """

    options: dict[str, Any] = field(default_factory=dict)
    caution: str = ""


# They are there to try things out: a run takes seconds on a processor.
_DIGITS: dict[str, Any] = {
    "backbone": "small-cnn",
    "weights": "none",
    "iterations": 300,
    "batch_size": 24,
    "learning_rate": 5e-3,
    "weight_decay": 5e-5,
    "validate_every": 20,
    "image_size": 14,
}
# Where a bit of the code lies decides what it says, which pooling would lose.
_CODED_DIGITS = {
    "backbone": "small-mlp",
    "iterations": 200,
    "learning_rate": 3e-3,
    "image_size": 16,
}

BUILT_IN_DATA = {
    "rotated-digits": BuiltInData(_DIGITS),
    "colored-digits": BuiltInData(_DIGITS),
    "coded-digits": BuiltInData(
        _DIGITS | _CODED_DIGITS,
        "coded-digits is made for gradient surgery: its source domains have the digit in common "
        "and nothing else; it shows what a method does, not how often that helps on other images",
    ),
}


def built_in(data: str) -> BuiltInData:
    """What is known of the data set `data`, a name with or without its parameters.

    >>> built_in("coded-digits:domains=8").options["backbone"]
    'small-mlp'
    >>> built_in("photos/").options
    {}
    """
    return BUILT_IN_DATA.get(data.partition(":")[0], BuiltInData())
