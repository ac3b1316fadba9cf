"""Defaults of a run: the paper's, and small ones for the built-in digit sets."""

from typing import Any

BUILT_IN = ("rotated-digits", "colored-digits")

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


def defaults_for(data: str) -> dict[str, Any]:
    """The options in which the data set `data` departs from the paper's protocol."""
    return dict(_DIGITS) if data in BUILT_IN else {}
