"""What all runs of a report share, and where they differ."""

import json
from collections.abc import Sequence
from typing import Any

_MOST_VALUES = 8


def shared_and_differing(
    parts: Sequence[dict[str, Any]], without: Sequence[str] = ()
) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    """The values that all of `parts` have in common, and how many have each of the others.

    Values are as text; a name that a part lacks is "–" there; the names in `without` are left out.

    >>> shared_and_differing([{"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 1, "b": 3}])
    ({'a': '1'}, {'b': {'2': 1, '3': 2}})
    """
    names = dict.fromkeys(name for part in parts for name in part if name not in without)
    shared: dict[str, str] = {}
    differing: dict[str, dict[str, int]] = {}
    for name in names:
        counts: dict[str, int] = {}
        for part in parts:
            text = value_text(part.get(name))
            counts[text] = counts.get(text, 0) + 1
        if len(counts) == 1:
            shared[name] = next(iter(counts))
        else:
            differing[name] = counts
    return shared, differing


def value_text(value: object) -> str:
    """A setting as text.

    >>> value_text(1e-05), value_text(True), value_text({"irm.penalty": 10.0}), value_text(None)
    ('1e-05', 'yes', 'irm.penalty=10.0', '–')
    """
    if value is None or value in ({}, []):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name}={value_text(each)}" for name, each in sorted(value.items()))
    if isinstance(value, list):
        return ", ".join(value_text(each) for each in value)
    return value if isinstance(value, str) else json.dumps(value)


def values_text(counts: dict[str, int]) -> str:
    """The values of a setting that differs, the most frequent first, each with its runs.

    >>> values_text({"cpu": 1, "cuda": 3})
    'cuda (3 runs), cpu (1 run)'
    """
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    texts = [f"{text} ({count} run{'' if count == 1 else 's'})" for text, count in ordered]
    more = len(texts) - _MOST_VALUES
    return ", ".join([*texts[:_MOST_VALUES], *([f"and {more} more"] if more > 0 else [])])
