"""`selection.json`: what was chosen, with its evidence."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gradsurgery.atomic import atomic_file
from gradsurgery.errors import DataError
from gradsurgery.results.selection.choice import CRITERIA, Candidate, Choice, Selection, Summary
from gradsurgery.versioned import read_versioned

SELECTION_FILE = "selection.json"
VERSION = 1


def write_selections(selections: Sequence[Selection], path: Path) -> None:
    """Write the selections, one a criterion; raises `OutputError`."""
    content = {
        "version": VERSION,
        "criteria": {
            selection.criterion: {
                "score": CRITERIA[selection.criterion].score,
                "attainable": CRITERIA[selection.criterion].attainable,
                "choices": [_plain(choice) for choice in selection.choices],
            }
            for selection in selections
        },
    }
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_selections(path: Path) -> dict[str, Selection]:
    """The selections of a `selection.json` by criterion.

    Raises `DataError` where it is cut off, of another version or no selection.
    """
    cure = "delete it and run gradsurgery select again"
    content = read_versioned(path, "model selection", VERSION, cure=cure)
    try:
        return {
            name: Selection(name, tuple(map(_choice, about["choices"])))
            for name, about in content["criteria"].items()
            if name in CRITERIA
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{path} is no model selection ({reason}); {cure}") from error


def _plain(choice: Choice) -> dict[str, Any]:
    plain = asdict(choice)
    for candidate, found in zip(plain["candidates"], choice.candidates, strict=True):
        candidate["score"] = None if found.score is None else found.score._asdict()
    accuracy = choice.target_accuracy
    return plain | {"target_accuracy": None if accuracy is None else accuracy._asdict()}


def _choice(plain: dict[str, Any]) -> Choice:
    candidates = tuple(
        Candidate(each["hyperparameters"], _summary(each["score"]), each["lacks"])
        for each in plain["candidates"]
    )
    accuracy = _summary(plain["target_accuracy"])
    lists = {name: tuple(plain[name]) for name in ("searched", "seeds")}
    return Choice(**plain | lists | {"candidates": candidates, "target_accuracy": accuracy})


def _summary(plain: dict[str, Any] | None) -> Summary | None:
    return None if plain is None else Summary(**plain)
