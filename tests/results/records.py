"""Records and plans made by hand."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradsurgery.documents.record import Record
from gradsurgery.documents.tally import Tally

CONFIGURATION: dict[str, Any] = {
    "data": "pacs:somewhere",
    "target": "sketch",
    "method": "agr-sum",
    "backbone": "alexnet",
    "weights": "default",
    "batch_norm": "frozen",
    "seed": 0,
    "split_seed": 0,
    "split_per_run": False,
    "iterations": 40,
    "learning_rate": 1e-05,
    "device": "cpu",
    "skip_bad": False,
}
RECORD: dict[str, Any] = {
    "version": 1,
    "configuration": CONFIGURATION,
    "data": {
        "name": "pacs",
        "digest": "d1",
        "domains": ["art_painting", "photo", "sketch"],
        "classes": ["dog", "cat"],
        "images": {"art_painting": 20, "photo": 20, "sketch": 20},
        "skipped": [],
    },
    "split": {"digest": "s1", "seed": 0, "sizes": {}},
    "model": {"parameters": 10, "pretrained": True, "weights_digest": None},
    "curves": {
        "step": [20, 40],
        "train_loss": [2.0, 1.0],
        "validation_loss": [2.5, 1.5],
        "validation_accuracy": [0.75, 0.75],
        "agreeing": [0.5, 0.5],
        "cosine": [0.25, 0.125],
    },
    "result": {
        name: {
            "step": step,
            "validation_accuracy": 0.75,
            "target_accuracy": 0.5,
            "test_accuracy": {"art_painting": 0.75, "photo": 0.875, "sketch": 0.5},
        }
        for name, step in (("best", 20), ("last", 40))
    },
    "environment": {"gradsurgery": "0.1.0", "torch": "2.9.0", "device": "cpu"},
    "cost": {"seconds": 12.5, "seconds_per_step": 0.125, "peak_memory_bytes": 2**30},
}


@pytest.fixture
def record() -> dict[str, Any]:
    return copy.deepcopy(RECORD)


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Write a record with other values at dotted names, as a comparison lays them out."""

    def write(
        method: str = "agr-sum",
        target: str = "sketch",
        seed: int = 0,
        best: float = 0.5,
        last: float = 0.25,
        *,
        folder: str = "runs",
        validation: float = 0.75,
        **changes: Any,
    ) -> Path:
        content = copy.deepcopy(RECORD)
        content["configuration"] |= {"method": method, "target": target, "seed": seed}
        content["result"]["best"]["target_accuracy"] = best
        content["result"]["last"]["target_accuracy"] = last
        for result in content["result"].values():
            result["validation_accuracy"] = validation
        content["curves"]["validation_accuracy"] = [validation, validation]
        for name, value in changes.items():
            part, _, key = name.partition("__")
            content[part][key] = value
        end = content["configuration"]["iterations"]
        content["curves"]["step"] = steps = [end // 2, end]
        for result, step in zip(content["result"].values(), steps, strict=True):
            result["step"] = step
            tested = dict.fromkeys(content["data"]["domains"], 0.75)
            result["test_accuracy"] = tested | {
                d: a for d, a in result["test_accuracy"].items() if d in tested
            }
        return save_record(content, tmp_path / folder / target / method / f"seed-{seed}")

    return write


def save_record(content: dict[str, Any], folder: Path) -> Path:
    """Write `record.json` into a new folder; a target's accuracy is its test accuracy too."""
    for result in content["result"].values():
        if (accuracy := result.get("target_accuracy")) is not None:
            result["test_accuracy"][content["configuration"]["target"]] = accuracy
    folder.mkdir(parents=True)
    path = folder / "record.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def of_target(
    content: dict[str, Any], target: str, tests: dict[str, Tally] | None = None
) -> Record:
    """A record of another target, with accuracies that follow from the best model's tests."""
    content["configuration"]["target"] = target
    best = content["result"]["best"]
    best["tests"] = {domain: tally.model_dump() for domain, tally in (tests or {}).items()}
    best["test_accuracy"] |= {domain: tally.accuracy for domain, tally in (tests or {}).items()}
    for result in content["result"].values():
        result["target_accuracy"] = result["test_accuracy"][target]
    return Record.model_validate(content)


def write_plan(folder: Path, runs: list[dict[str, Any]], **plan: Any) -> None:
    """Write `plan.json`; each of `runs` takes the defaults of a run made by hand."""
    usual = {"data": "pacs", "target": "sketch", "method": "agr-sum", "seed": 0}
    content = {"version": 1, "plan": plan, "runs": [usual | run for run in runs]}
    (folder / "plan.json").write_text(json.dumps(content))


def write_failure(folder: Path, error: str, traceback: str = "", **options: Any) -> Path:
    """Write `failure.json` of a run with the `options`."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"version": 1, "configuration": CONFIGURATION | options, "attempts": 2}
    path = folder / "failure.json"
    path.write_text(json.dumps(content | {"error": error, "traceback": traceback}))
    return path
