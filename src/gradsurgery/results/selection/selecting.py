"""Choose hyperparameters from the records of runs that differ in them."""

import json
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsurgery.errors import ArgumentError, DataError
from gradsurgery.results.selection.choice import (
    CRITERIA,
    Candidate,
    Choice,
    Criterion,
    Selection,
    Summary,
)

if TYPE_CHECKING:
    import pandas as pd

_TIE = 1e-12  # rounding errors of mean accuracies are smaller, differences of them larger

Row = Mapping[Hashable, Any]


@dataclass
class _Tried:
    """The runs of one candidate by seed.

    `apart[seed][source]` is the accuracy on a source domain of a run trained without it.
    """

    runs: dict[int, Row] = field(default_factory=dict)
    apart: dict[int, dict[str, float]] = field(default_factory=dict)
    order: float = float("inf")


@dataclass
class _Group:
    """What one choice is made among: candidates by their hyperparameters as JSON."""

    data: str
    target: str
    method: str
    conditions: dict[str, Any]
    domains: tuple[str, ...]
    tried: dict[str, _Tried] = field(default_factory=dict)


def select(
    runs: "pd.DataFrame", criterion: str, *, planned: "pd.DataFrame | None" = None
) -> Selection:
    """For every data set, target, method and backbone the hyperparameters that score best.

    The score is the mean over the seeds of what `CRITERIA[criterion]` says; of equal scores the
    candidate first in the plan is chosen. Candidates that lack a seed which another run or the
    plan has are not eligible. No criterion but the oracle looks at the target domain, and none at
    its test images; `target_accuracy` is reported and decides nothing.

    "leave-one-domain-out" takes, for target t and every source s, the run trained without both
    (whichever of them it calls its target): its accuracy on the test images of s.

    Args:
        runs: as `gradsurgery.report.read_runs` gives them.
        criterion: a name of `CRITERIA`.
        planned: the sweep's runs, a row each, with the columns directory, data, target, method,
            seed and without: `pd.DataFrame(gradsurgery.report.read_plan(folder))`.

    Raises `ArgumentError` for an unknown criterion, `DataError` where a run is there twice.
    """
    if criterion not in CRITERIA:
        raise ArgumentError(f"criterion must be one of {', '.join(CRITERIA)}, found {criterion!r}")
    rows = [] if planned is None else planned.to_dict("records")
    directories = [Path(row["directory"]).resolve() for row in rows]
    finished = {record: Path(record).parent.resolve() for record in runs["record"]}
    order = {directory: place for place, directory in enumerate(directories)}
    places = {record: order[at] for record, at in finished.items() if at in order}
    groups = _grouped(runs.to_dict("records"), places)
    done = set(finished.values())
    waiting = [row for row, at in zip(rows, directories, strict=True) if at not in done]
    choices = [_choice(group, CRITERIA[criterion], rows, waiting) for group in groups]
    return Selection(criterion, tuple(choice for choice in choices if choice is not None))


def _grouped(rows: list[dict[Hashable, Any]], places: dict[str, int]) -> list[_Group]:
    """`places` says where in the plan the run of a record stands."""
    groups: dict[tuple[str, ...], _Group] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for row in rows:
        held_out = [row["target"], *row["without"]]
        if len(held_out) > 2:
            continue  # belongs to no criterion
        once = (*_key(row, row["target"]), *row["without"], row["hyperparameters"], row["seed"])
        if once in seen:
            raise DataError(
                f"the run of {row['method']} without {' and '.join(held_out)} with seed "
                f"{row['seed']} is there twice: {seen[once]} and {row['record']}; give one of them"
            )
        seen[once] = row["record"]
        for target in held_out:
            key = _key(row, target)
            if key not in groups:
                groups[key] = _new_group(row, target)
            group = groups[key]
            tried = group.tried.setdefault(row["hyperparameters"], _Tried())
            tried.order = min(tried.order, places.get(row["record"], float("inf")))
            if len(held_out) == 1:
                tried.runs[row["seed"]] = row
                continue
            (source,) = (domain for domain in held_out if domain != target)
            accuracies = tried.apart.setdefault(row["seed"], {})
            if source in row["best_test_accuracy"] and (
                source not in accuracies or target == row["target"]
            ):
                accuracies[source] = row["best_test_accuracy"][source]
    return sorted(groups.values(), key=lambda g: (g.data, g.domains.index(g.target), g.method))


def _key(row: Row, target: str) -> tuple[str, ...]:
    conditions = _conditions(row["settings"], row["hyperparameters"])
    return (row["data"], target, row["method_name"], conditions)


@cache
def _conditions(settings: str, hyperparameters: str) -> str:
    """The settings that are no hyperparameters, all of them as JSON."""
    chosen = json.loads(hyperparameters)
    conditions = {k: v for k, v in json.loads(settings).items() if k not in chosen}
    return json.dumps(conditions, sort_keys=True)


def _new_group(row: Row, target: str) -> _Group:
    conditions = json.loads(_conditions(row["settings"], row["hyperparameters"]))
    return _Group(row["data"], target, row["method_name"], conditions, row["domains"])


def _choice(
    group: _Group,
    criterion: Criterion,
    planned: list[dict[Hashable, Any]],
    waiting: list[dict[Hashable, Any]],
) -> Choice | None:
    """None where the runs of the group only serve other targets."""
    apart = criterion.name == "leave-one-domain-out"
    tried = sorted(group.tried.items(), key=lambda item: item[1].order)
    if not apart:
        tried = [(key, each) for key, each in tried if each.runs]
    seeds = {seed for _, each in tried for seed in (*each.runs, *(each.apart if apart else ()))}
    seeds |= {int(row["seed"]) for row in planned if _is_of(row, group, apart=apart)}
    hyperparameters = [json.loads(key) for key, _ in tried]
    candidates = [
        _candidate(values, _scores(each, criterion, group), sorted(seeds))
        for values, (_, each) in zip(hyperparameters, tried, strict=True)
    ]
    chosen = _best(candidates)
    if chosen is None and not any(each.runs for _, each in tried):
        return None
    results: list[float] = []
    if chosen is not None:
        column = f"{criterion.model}_target_accuracy"
        results = [float(run[column]) for _, run in sorted(tried[chosen][1].runs.items())]
    return Choice(
        data=group.data,
        target=group.target,
        method=group.method,
        backbone=str(group.conditions.get("backbone", "")),
        conditions=group.conditions,
        searched=_differing(hyperparameters),
        seeds=tuple(sorted(seeds)),
        candidates=tuple(candidates),
        chosen=chosen,
        needs="" if chosen is not None else _needs(criterion, tried),
        target_accuracy=Summary.of(results) if results else None,
        unfinished=sum(_is_of(row, group, apart=apart) for row in waiting),
    )


def _scores(tried: _Tried, criterion: Criterion, group: _Group) -> dict[int, float]:
    """By seed, where the runs that it takes are there."""
    if criterion.name == "leave-one-domain-out":
        sources = [domain for domain in group.domains if domain != group.target]
        return {
            seed: sum(of_source[source] for source in sources) / len(sources)
            for seed, of_source in tried.apart.items()
            if all(source in of_source for source in sources)
        }
    oracle = "last_target_validation_accuracy"
    column = oracle if criterion.name == "oracle" else "best_validation_accuracy"
    scores = {seed: float(run[column]) for seed, run in tried.runs.items()}
    return {seed: score for seed, score in scores.items() if not math.isnan(score)}


def _candidate(values: dict[str, Any], scores: dict[int, float], seeds: list[int]) -> Candidate:
    missing = [str(seed) for seed in seeds if seed not in scores]
    lacks = f"seed{'s' if len(missing) > 1 else ''} {', '.join(missing)}" if missing else ""
    found = [scores[seed] for seed in sorted(scores)]
    return Candidate(values, Summary.of(found) if found else None, lacks)


def _best(candidates: list[Candidate]) -> int | None:
    means = {
        position: candidate.score.mean
        for position, candidate in enumerate(candidates)
        if candidate.eligible and candidate.score is not None
    }
    if not means:
        return None
    return min(place for place, mean in means.items() if mean >= max(means.values()) - _TIE)


def _needs(criterion: Criterion, tried: list[tuple[str, _Tried]]) -> str:
    if criterion.name == "leave-one-domain-out":
        if not any(each.apart for _, each in tried):
            return "runs that leave out each source domain too"
        return "runs that leave out each source domain too, with every seed of one candidate"
    if criterion.name == "oracle":
        return "the accuracy on the target's validation images, with every seed of one candidate"
    return "every seed of one candidate"


def _is_of(row: Row, group: _Group, *, apart: bool) -> bool:
    """Whether a planned run is the group's; `apart` counts those that leave out a source too."""
    if (row["data"], row["method"]) != (group.data, group.method):
        return False
    if not row["without"]:
        return bool(row["target"] == group.target)
    return apart and group.target in (row["target"], *row["without"])


def _differing(values: list[dict[str, Any]]) -> tuple[str, ...]:
    names = sorted({name for each in values for name in each})
    return tuple(n for n in names if any(each.get(n) != values[0].get(n) for each in values))
