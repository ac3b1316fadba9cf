"""Short runs on the built-in digits."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradsurgery.data import ImageSet, open_source, prepare
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.record import Record
from gradsurgery.training import frozen_features

SHORT: dict[str, Any] = {
    "data": "rotated-digits",
    "target": "75",
    "iterations": 12,
    "batch_size": 8,
    "validate_every": 4,
    "image_size": 12,
    "device": "cpu",
}


@pytest.fixture(scope="session")
def images(cache: Path) -> ImageSet:
    return prepare(open_source("rotated-digits"), size=12, cache=cache)


@pytest.fixture
def configured() -> Callable[..., RunConfiguration]:
    """Options of a short run, those given in place of the usual ones."""

    def configure(**options: Any) -> RunConfiguration:
        return RunConfiguration(**{**SHORT, **options})

    return configure


@pytest.fixture
def outcome() -> Callable[[Record, Path], tuple[dict[str, Any], bytes]]:
    """What must be the same in two runs of one command: the best model, and all but the cost."""

    def of(record: Record, directory: Path) -> tuple[dict[str, Any], bytes]:
        return record.model_dump(exclude={"cost"}), (directory / "model.safetensors").read_bytes()

    return of


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that a test starts compute as the tests do."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """No features of frozen layers, and no draws of what checks the annotations under the tests."""
    monkeypatch.setattr(random, "getstate", random.Random(0).getstate)
    frozen_features._kept.clear()
