"""Short runs on the built-in digits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradsurgery.data import ImageSet, open_source, prepare
from gradsurgery.documents.configuration import RunConfiguration


@pytest.fixture(scope="session")
def digits(cache: Path) -> ImageSet:
    return prepare(open_source("rotated-digits"), size=12, cache=cache)


@pytest.fixture
def configured() -> Callable[..., RunConfiguration]:
    """Options of a short run, those given in place of the usual ones."""

    def configure(**options: Any) -> RunConfiguration:
        short = {"iterations": 12, "batch_size": 8, "validate_every": 4, "image_size": 12}
        return RunConfiguration(
            **{"data": "rotated-digits", "target": "75", "device": "cpu", **short, **options}
        )

    return configure
