"""Runs made by hand, as `read_runs` gives them."""

import json
from typing import Any

import pandas as pd
import pytest

DOMAINS = ("a", "b", "c")


def run(
    target: str = "a",
    seed: int = 0,
    *,
    without: tuple[str, ...] = (),
    method: str = "irm",
    tested: dict[str, float] | None = None,
    folder: str = "",
    conditions: dict[str, Any] | None = None,
    accuracies: tuple[float, float, float] = (0.5, 0.5, 0.5),
    **hyperparameters: Any,
) -> dict[str, Any]:
    """`accuracies`: validation of the best model, target of the best model, oracle's."""
    validation, accuracy, oracle = accuracies
    settings = {"backbone": "alexnet", "weights": "default", **(conditions or {})}
    settings |= {k: v for k, v in hyperparameters.items() if "." not in k}
    place = "-".join(map(str, hyperparameters.values()))
    return {
        "record": f"{folder}/{target}/{method}/{place}/{seed}{''.join(without)}/record.json",
        "data": "letters",
        "domains": DOMAINS,
        "target": target,
        "without": without,
        "method": method,
        "method_name": method,
        "backbone": settings["backbone"],
        "seed": seed,
        "best_validation_accuracy": validation,
        "best_target_accuracy": accuracy,
        "last_target_accuracy": accuracy / 2,
        "last_target_validation_accuracy": oracle,
        "best_test_accuracy": tested or dict.fromkeys(DOMAINS, 0.5),
        "settings": json.dumps(settings, sort_keys=True),
        "hyperparameters": json.dumps(hyperparameters, sort_keys=True),
    }


@pytest.fixture
def made():
    """A run, and the data frame of several."""
    return run, pd.DataFrame
