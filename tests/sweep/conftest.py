"""Small plans on the built-in digits."""

from collections.abc import Callable
from typing import Any

import pytest

from gradsurgery.documents.plan import Plan
from gradsurgery.sweep.runs import OpenedData, SweepRun, plan_runs

OPTIONS: dict[str, Any] = {
    "iterations": 6,
    "validate_every": 3,
    "batch_size": 8,
    "image_size": 12,
    "device": "cpu",
}
OPENED = {
    "rotated-digits": OpenedData("rotated-digits", ("0", "15", "30", "45", "60", "75")),
    "pacs:place": OpenedData("pacs", ("art_painting", "cartoon", "photo", "sketch")),
}


@pytest.fixture
def plan() -> Callable[..., Plan]:
    def make(**parts: Any) -> Plan:
        return Plan(**{"data": ["rotated-digits"], "targets": ["75"], "options": OPTIONS} | parts)

    return make


@pytest.fixture
def runs_of() -> Callable[[Plan], list[SweepRun]]:
    def make(plan: Plan) -> list[SweepRun]:
        return plan_runs(plan, {spec: OPENED[spec] for spec in plan.data})

    return make
