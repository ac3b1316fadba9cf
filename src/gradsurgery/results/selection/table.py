"""Selections as rows of text."""

from collections.abc import Sequence
from typing import Any

from gradsurgery.results.selection.choice import CRITERIA, Candidate, Choice, Selection, Summary

CHOICE_HEADER = ["data", "target", "method", "criterion", "chosen", "score (%)", "target (%)"]
EVIDENCE_HEADER = ["data", "target", "method", "criterion", "candidate", "score (%)", "n", ""]


def choice_rows(selections: Sequence[Selection]) -> list[list[str]]:
    """One row for every choice, the criteria of one choice below each other."""
    return [[*about, *_chosen(choice)] for about, choice in _by_choice(selections)]


def evidence_rows(selections: Sequence[Selection]) -> list[list[str]]:
    """One row for every candidate of every choice, in the order of the plan."""
    rows = []
    for about, choice in _by_choice(selections):
        for position, candidate in enumerate(choice.candidates):
            score = candidate.score
            rows.append(
                [
                    *about,
                    _values(candidate, choice),
                    _percent(score),
                    "0" if score is None else str(score.n),
                    _verdict(candidate, chosen=position == choice.chosen),
                ]
            )
    return rows


def _by_choice(selections: Sequence[Selection]) -> list[tuple[list[str], Choice]]:
    """What names a choice, and the choice; the same choice of every criterion together."""
    found: dict[Any, list[tuple[list[str], Choice]]] = {}
    for selection in selections:
        for choice in selection.choices:
            key = (choice.data, choice.target, choice.method, str(choice.conditions))
            label = CRITERIA[selection.criterion].label
            about = [choice.data, choice.target, _method(choice, selection.choices), label]
            found.setdefault(key, []).append((about, choice))
    return [row for rows in found.values() for row in rows]


def _method(choice: Choice, choices: Sequence[Choice]) -> str:
    """The method, with the conditions in which there are choices for it that differ."""
    same = ("data", "target", "method")
    beside = [c for c in choices if all(getattr(c, n) == getattr(choice, n) for n in same)]
    apart = [
        f"{name} {value}"
        for name, value in choice.conditions.items()
        if any(other.conditions.get(name) != value for other in beside)
    ]
    return ", ".join([choice.method, *apart])


def _chosen(choice: Choice) -> list[str]:
    waiting = ""
    if choice.unfinished:
        are = "run is" if choice.unfinished == 1 else "runs are"
        waiting = f"; {choice.unfinished} planned {are} not finished"
    if choice.candidate is None:
        return [f"not available: needs {choice.needs}{waiting}", "–", "–"]
    count = len(choice.candidates)
    of = f" (of {count})" if count > 1 else ""
    chosen = f"{_values(choice.candidate, choice)}{of}{waiting}"
    result, seeds = _percent(choice.target_accuracy), len(choice.seeds)
    if choice.target_accuracy is not None and choice.target_accuracy.n < seeds:
        result += f" (n={choice.target_accuracy.n} of {seeds})"
    return [chosen, _percent(choice.candidate.score), result]


def _values(candidate: Candidate, choice: Choice) -> str:
    if not choice.searched:
        return "the only candidate"
    values = {name: candidate.hyperparameters.get(name) for name in choice.searched}
    return ", ".join(
        f"{name} {'default' if value is None else _short(value)}" for name, value in values.items()
    )


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _percent(score: Summary | None) -> str:
    if score is None:
        return "–"
    spread = "" if score.std is None else f" ± {100 * score.std:.2f}"
    return f"{100 * score.mean:.2f}{spread}"


def _verdict(candidate: Candidate, *, chosen: bool) -> str:
    if chosen:
        return "chosen"
    return "" if candidate.eligible else f"not eligible: lacks {candidate.lacks}"
