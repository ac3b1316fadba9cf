"""What the options of a run are where it does not say: by its data set and its protocol."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from gradsurgery.documents.data_options import is_drawn
from gradsurgery.errors import ArgumentError


@dataclass(frozen=True)
class BuiltInData:
    """A data set that is made here.

    options: of a run, where it does not say otherwise.
    caution: what a reader of its results should know, in one line; empty for nothing.
    """

    options: dict[str, Any] = field(default_factory=dict)
    caution: str = ""


# They are there to try things out, with any protocol: a run takes seconds on a processor.
_DIGITS: dict[str, Any] = {
    "augment": "none",  # digits are not to be flipped
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


PROTOCOLS: dict[str, dict[str, Any]] = {
    "paper": {},
    # DomainBed's hparams_registry.py (its defaults), datasets.py, scripts/train.py, networks.py
    "domainbed": {
        "backbone": "resnet50",
        "weights": "IMAGENET1K_V1",
        "image_size": 224,
        "augment": "domainbed",
        "iterations": 5000,
        "batch_size": 32,
        "learning_rate": 5e-5,
        "weight_decay": 0.0,
        "validate_every": 300,
        "split": "80/20/0",
        "split_per_run": True,
        "test_on": "all",
        "validation_mean": "domains",
    },
}
"""What the options of a run are by a protocol's name, where the run does not say otherwise."""


def defaults_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the data set and the protocol among the options `given` make of those that are not.

    >>> defaults_of({"data": "photos/", "protocol": "domainbed"})["iterations"]
    5000
    """
    protocol = dict(PROTOCOLS.get(str(given.get("protocol")), {}))
    network = protocol.get("backbone")
    if given.get("backbone", network) != network:
        protocol.pop("weights", None)  # another network has other weights
    split = given.get("split")
    if isinstance(split, str | PathLike) and not is_drawn(str(split)):
        protocol.pop("split_per_run", None)  # it is told, and not drawn
    return protocol | built_in(str(given.get("data"))).options


def check_protocol(written: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise `ArgumentError` where a file says otherwise what a protocol that was given would say.

    written: the options in the file. given: those beside it, which take their place.
    """
    asked = given.get("protocol")
    if asked not in PROTOCOLS or asked == written.get("protocol", "paper"):
        return
    decided = [name for each in PROTOCOLS.values() for name in each if name not in given]
    said = [n for n in decided if n in written and written[n] != PROTOCOLS[asked].get(n)]
    if said:
        raise ArgumentError(
            f"--protocol {asked} would set {', '.join(said)}, which the file sets otherwise; take "
            f"them out of the file, or write protocol: {asked} beside them to keep them"
        )


def built_in(data: str) -> BuiltInData:
    """What is known of the data set `data`, a name with or without its parameters.

    >>> built_in("coded-digits:domains=8").options["backbone"]
    'small-mlp'
    >>> built_in("photos/").options
    {}
    """
    return BUILT_IN_DATA.get(data.partition(":")[0], BuiltInData())
