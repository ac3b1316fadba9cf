"""Runs made by hand, as `runs_frame` gives them."""

from typing import Any

from gradsurgery.results.runs import as_json

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
    own = {k: v for k, v in hyperparameters.items() if "." in k}
    options = {k: v for k, v in hyperparameters.items() if k not in own}
    conditions = {"backbone": "alexnet", "weights": "default", **(conditions or {})}
    place = "-".join(map(str, hyperparameters.values()))
    return {
        "record": f"{folder}/{target}/{method}/{place}/{seed}{''.join(without)}/record.json",
        "data": "letters",
        "domains": DOMAINS,
        "target": target,
        "without": without,
        "method": method,
        "method_name": method,
        "seed": seed,
        "best_validation_accuracy": validation,
        "best_target_accuracy": accuracy,
        "last_target_accuracy": accuracy / 2,
        "last_target_validation_accuracy": oracle,
        "best_test_accuracy": tested or dict.fromkeys(DOMAINS, 0.5),
        "conditions": as_json(conditions),
        "hyperparameters": as_json(hyperparameters),
        "settings": as_json(own),
        "protocol": as_json(conditions | options),
    }
