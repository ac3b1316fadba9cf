"""Model selection: which hyperparameters each criterion chooses among runs that differ in them."""

import json
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsurgery.documents.plan import PlannedRun
from gradsurgery.documents.selection import (
    CRITERIA,
    Candidate,
    Choice,
    Criterion,
    Model,
    Selection,
    Selections,
    Summary,
)
from gradsurgery.errors import ArgumentError, DataError
from gradsurgery.results.frame import as_json, method_label
from gradsurgery.results.inventory import Inventory

if TYPE_CHECKING:
    import pandas as pd

ALL = "none"
"""Instead of a criterion: compare the runs of every candidate."""
_APART = "leave-one-domain-out"
_TIE = 1e-12  # rounding errors of mean accuracies are smaller, differences of them larger

Row = Mapping[Hashable, Any]
Planned = Mapping[Path, PlannedRun]


@dataclass(frozen=True)
class Search:
    """The runs to compare, and how they were chosen.

    `selections` is what every criterion chooses, empty where nothing was searched; `used` is the
    criterion that chose `runs`, "none" where they are all.
    """

    runs: "pd.DataFrame"
    selections: dict[str, Selection]
    used: str

    @property
    def model(self) -> Model:
        """Whose accuracy results from the choice."""
        return "best" if self.used == ALL else CRITERIA[self.used].model

    @property
    def tried_several(self) -> bool:
        """Whether some choice had more than one candidate."""
        return any(len(c.candidates) > 1 for each in self.selections.values() for c in each.choices)

    @property
    def provisional(self) -> str:
        """A sentence on choices that were made while runs of some candidate are missing, or ""."""
        choices = self.selections[self.used].choices if self.used != ALL else []
        early = [
            choice
            for choice in choices
            if choice.candidate is not None
            and (choice.unfinished or not all(each.eligible for each in choice.candidates))
        ]
        if not early:
            return ""
        return (
            f"{len(early)} of {len(choices)} choices of hyperparameters were made while runs "
            "of some candidate are missing, and may change."
        )


def search_of(inventory: Inventory, criterion: str | None) -> Search:
    """The runs that tables compare.

    criterion: whose choice, "none" for all; None is "training-domain" for the runs of a plan with
    a grid, else "none". Where nothing was searched, or nothing can be chosen yet, None is "none"
    too; one that was asked for still says which model is tested.

    Raises `ArgumentError` for an unknown criterion, `DataError` for one that can choose nothing.
    """
    if criterion not in (None, ALL, *CRITERIA):
        known = ", ".join([*CRITERIA, ALL])
        raise ArgumentError(f"selected must be one of {known}, found {criterion!r}")
    selections = select_by_all(inventory).criteria
    first = next(iter(selections.values()))
    if criterion in (None, ALL) and not any(len(c.candidates) > 1 for c in first.choices):
        return Search(inventory.runs, {}, ALL)
    used = criterion or ("training-domain" if inventory.searched else ALL)
    if used != ALL:
        chosen = selected_runs(inventory.runs, used, selections[used])
        if len(chosen):
            return Search(chosen, selections, used)
        if criterion is not None:
            folder = inventory.paths[0]
            raise DataError(
                f"{criterion} can choose nothing among the runs in {folder} yet; gradsurgery "
                f"select {folder} says what it needs"
            )
    return Search(inventory.runs, selections, ALL)


def selected_runs(runs: "pd.DataFrame", criterion: str, selection: Selection) -> "pd.DataFrame":
    """The rows of `runs_frame` with the chosen hyperparameters, for `compare_runs`.

    What was searched no longer parts the runs: it is neither in their `protocol` nor in the name
    of their method, as each has its own choice; `protocol` says by which criterion instead. Runs
    for which nothing could be chosen are left out.
    """
    import pandas as pd

    chosen = {
        (c.data, c.target, c.method, as_json(c.conditions)): c.candidate.hyperparameters
        for c in selection.choices
        if c.candidate is not None
    }
    searched = {name for choice in selection.choices for name in choice.searched}
    rows = []
    for row in runs.to_dict("records"):
        place = (row["data"], row["target"], row["method_name"], row["conditions"])
        if row["without"] or chosen.get(place) != json.loads(row["hyperparameters"]):
            continue
        protocol = {k: v for k, v in json.loads(row["protocol"]).items() if k not in searched}
        settings = {k: v for k, v in json.loads(row["settings"]).items() if k not in searched}
        row["method"] = method_label(row["method_name"], settings)
        row["protocol"] = as_json(protocol | {"selection": criterion})
        rows.append(row)
    return pd.DataFrame(rows, columns=runs.columns)


def select_by_all(inventory: Inventory) -> Selections:
    """What every criterion chooses."""
    planned = inventory.planned or {}
    criteria = {name: select(inventory.runs, name, planned=planned) for name in CRITERIA}
    return Selections(criteria=criteria)


@dataclass
class _Tried:
    """The runs of one candidate by seed.

    `apart[seed][source]` is the accuracy on a source domain of a run trained without it.
    """

    runs: dict[int, Row] = field(default_factory=dict)
    apart: dict[int, dict[str, float]] = field(default_factory=dict)
    order: float = math.inf


@dataclass
class _Group:
    """What one choice is made among: candidates by their hyperparameters as JSON."""

    data: str
    target: str
    method: str
    conditions: dict[str, Any]
    domains: tuple[str, ...]
    tried: dict[str, _Tried] = field(default_factory=dict)

    @property
    def sources(self) -> list[str]:
        return [domain for domain in self.domains if domain != self.target]

    def has(self, run: PlannedRun, *, apart: bool) -> bool:
        """Whether a planned run is the group's; `apart` counts those without a source too."""
        if (run.data, run.method) != (self.data, self.method):
            return False
        return (
            run.target == self.target
            if not run.without
            else (apart and self.target in (run.target, *run.without))
        )


def select(runs: "pd.DataFrame", criterion: str, *, planned: Planned | None = None) -> Selection:
    """For every data set, target, method and conditions the hyperparameters that score best.

    The score is the mean over the seeds of what `CRITERIA[criterion]` says; of equal scores the
    candidate first in the plan is chosen. Candidates that lack a seed which another run or the
    plan has are not eligible. No criterion but the oracle looks at the target domain, and none at
    its test images; `target_accuracy` is reported and decides nothing.

    "leave-one-domain-out" takes, for target t and every source s, the run trained without both
    (whichever of them it calls its target): its accuracy on the test images of s.

    Args:
        runs: as `runs_frame` gives them.
        criterion: a name of `CRITERIA`.
        planned: the sweeps' runs by their folders, in the order of the plan.

    Raises `ArgumentError` for an unknown criterion.
    """
    if criterion not in CRITERIA:
        raise ArgumentError(f"criterion must be one of {', '.join(CRITERIA)}, found {criterion!r}")
    planned = planned or {}
    order = {folder: place for place, folder in enumerate(planned)}
    folders = {record: Path(record).parent.resolve() for record in runs["record"]}
    places = {record: float(order.get(folder, math.inf)) for record, folder in folders.items()}
    done = set(folders.values())
    waiting = [run for folder, run in planned.items() if folder not in done]
    groups = _grouped(runs.to_dict("records"), places)
    choices = [
        _choice(group, CRITERIA[criterion], list(planned.values()), waiting) for group in groups
    ]
    about = CRITERIA[criterion]
    return Selection(
        score=about.score,
        attainable=about.attainable,
        choices=[choice for choice in choices if choice is not None],
    )


def _grouped(rows: list[dict[Hashable, Any]], places: dict[str, float]) -> list[_Group]:
    """`places` says where in the plan the run of a record stands."""
    groups: dict[tuple[str, ...], _Group] = {}
    for row in rows:
        held_out = [row["target"], *row["without"]]
        if len(held_out) > 2:
            continue  # belongs to no criterion
        about = (row["data"], row["method_name"], row["conditions"])
        for target in held_out:
            group = groups.setdefault(
                (target, *about),
                _Group(
                    row["data"],
                    target,
                    row["method_name"],
                    json.loads(row["conditions"]),
                    row["domains"],
                ),
            )
            tried = group.tried.setdefault(row["hyperparameters"], _Tried())
            tried.order = min(tried.order, places[row["record"]])
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


def _choice(
    group: _Group, criterion: Criterion, planned: list[PlannedRun], waiting: list[PlannedRun]
) -> Choice | None:
    """None where the runs of the group only serve other targets."""
    apart = criterion.name == _APART
    tried = sorted(group.tried.items(), key=lambda item: item[1].order)
    if not apart:
        tried = [(key, each) for key, each in tried if each.runs]
    seeds = {seed for _, each in tried for seed in (*each.runs, *(each.apart if apart else ()))}
    seeds |= {run.seed for run in planned if group.has(run, apart=apart)}
    candidates = [
        _candidate(json.loads(key), _scores(each, criterion, group), sorted(seeds))
        for key, each in tried
    ]
    chosen = _best(candidates)
    if chosen is None and not any(each.runs for _, each in tried):
        return None
    results: list[float] = []
    if chosen is not None:
        column = f"{criterion.model}_target_accuracy"
        results = [float(run[column]) for _, run in sorted(tried[chosen][1].runs.items())]
    names = sorted({name for each in candidates for name in each.hyperparameters})
    values = [[each.hyperparameters.get(name) for each in candidates] for name in names]
    return Choice(
        data=group.data,
        target=group.target,
        method=group.method,
        backbone=str(group.conditions.get("backbone", "")),
        conditions=group.conditions,
        searched=[n for n, of in zip(names, values, strict=True) if any(v != of[0] for v in of)],
        seeds=sorted(seeds),
        candidates=candidates,
        chosen=chosen,
        needs="" if chosen is not None else _needs(criterion, [each for _, each in tried]),
        target_accuracy=Summary.of(results) if results else None,
        unfinished=sum(group.has(run, apart=apart) for run in waiting),
    )


def _scores(tried: _Tried, criterion: Criterion, group: _Group) -> dict[int, float]:
    """By seed, where the runs that it takes are there."""
    if criterion.name == _APART:
        return {
            seed: sum(of_source[source] for source in group.sources) / len(group.sources)
            for seed, of_source in tried.apart.items()
            if all(source in of_source for source in group.sources)
        }
    oracle = "last_target_validation_accuracy"
    column = oracle if criterion.name == "oracle" else "best_validation_accuracy"
    scores = {seed: float(run[column]) for seed, run in tried.runs.items()}
    return {seed: score for seed, score in scores.items() if not math.isnan(score)}


def _candidate(values: dict[str, Any], scores: dict[int, float], seeds: list[int]) -> Candidate:
    missing = [str(seed) for seed in seeds if seed not in scores]
    lacks = f"seed{'s' if len(missing) > 1 else ''} {', '.join(missing)}" if missing else ""
    found = [scores[seed] for seed in sorted(scores)]
    score = Summary.of(found) if found else None
    return Candidate(hyperparameters=values, score=score, lacks=lacks)


def _best(candidates: list[Candidate]) -> int | None:
    means = {
        position: candidate.score.mean
        for position, candidate in enumerate(candidates)
        if candidate.eligible and candidate.score is not None
    }
    if not means:
        return None
    return min(place for place, mean in means.items() if mean >= max(means.values()) - _TIE)


def _needs(criterion: Criterion, tried: list[_Tried]) -> str:
    if criterion.name == _APART:
        if not any(each.apart for each in tried):
            return "runs that leave out each source domain too"
        return "runs that leave out each source domain too, with every seed of one candidate"
    if criterion.name == "oracle":
        return "the accuracy on the target's validation images, with every seed of one candidate"
    return "every seed of one candidate"
