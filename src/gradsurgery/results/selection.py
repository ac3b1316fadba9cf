"""Model selection: which hyperparameters each criterion chooses among runs that differ in them."""

import itertools
import json
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
from gradsurgery.results.runs import Inventory, Plans, as_json, method_label, method_order, plans_of

if TYPE_CHECKING:
    import pandas as pd

ALL = "none"
"""Instead of a criterion: compare the runs of every candidate."""
_APART = "leave-one-domain-out"
_TIE = 1e-12  # rounding errors of mean accuracies are smaller, differences of them larger

Row = Mapping[Hashable, Any]


class Edge(NamedTuple):
    """A hyperparameter whose chosen value is the smallest or the `largest` of several `tried`."""

    name: str
    value: int | float
    largest: bool
    tried: int


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
    runs, plans = inventory.runs, inventory.plans
    return Selections(criteria={name: select(runs, name, plans=plans) for name in CRITERIA})


def select(runs: "pd.DataFrame", criterion: str, *, plans: Plans = ()) -> Selection:
    """For every data set, target, method and conditions the hyperparameters that score best.

    The score is the mean over the seeds of what `CRITERIA[criterion]` says; of equal scores the
    candidate first in the plan is chosen. Candidates that lack a seed which another run or the
    plan of one has are not eligible. No criterion but the oracle looks at the target domain, and
    none at its test images; `target_accuracy` is reported and decides nothing.

    "leave-one-domain-out" takes, for target t and every source s, the run trained without both
    (whichever of them it calls its target): its accuracy on the test images of s.

    runs: as `runs_frame` gives them. criterion: a name of `CRITERIA`; raises `ArgumentError` for
    any other. plans: of each sweep.
    """
    if criterion not in CRITERIA:
        raise ArgumentError(f"criterion must be one of {', '.join(CRITERIA)}, found {criterion!r}")
    about = CRITERIA[criterion]
    done = {Path(record).parent.resolve() for record in runs["record"]}
    own = {
        key: plans_of(alike["record"], plans) for key, alike in runs.groupby(["data", "conditions"])
    }
    choices = []
    for group in _grouped(runs.to_dict("records"), plans):
        planned = own[group[0]["data"], group[0]["conditions"]]
        waiting = [run for folder, run in planned.items() if folder not in done]
        choices.append(_choice(group, about, list(planned.values()), waiting))
    return Selection(
        score=about.score,
        attainable=about.attainable,
        choices=[choice for choice in choices if choice is not None],
    )


def _grouped(rows: Sequence[Row], plans: Plans) -> list[list[Row]]:
    """The runs that one choice is made among, those of two held-out domains in the group of each.

    Beside what the rows have, `target` is the group's, `other` the domain held out with it (None
    where there is none), `own` whether the run calls the former its target, and `place` where in
    the order of the plan it stands.
    """
    planned = [each for plan in plans for each in plan.items()]
    places = {folder: float(place) for place, (folder, _) in enumerate(planned)}
    order = method_order(run for _, run in planned)
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        held_out = [row["target"], *row["without"]]
        place = places.get(Path(row["record"]).parent.resolve(), math.inf)
        for target in held_out if len(held_out) <= 2 else ():  # more belong to no criterion
            other = next((domain for domain in held_out if domain != target), None)
            own: Row = {"target": target, "other": other, "own": target == row["target"]}
            where = (row["data"], row["domains"].index(target), row["method_name"])
            groups.setdefault((*where, row["conditions"]), []).append(
                {**row, **own, "place": place}
            )
    return [groups[key] for key in sorted(groups, key=lambda key: (key[:2], order(key[2])))]


def _choice(
    group: list[Row], criterion: Criterion, planned: list[PlannedRun], waiting: list[PlannedRun]
) -> Choice | None:
    """None where the runs of the group only serve other targets."""
    first, apart = group[0], criterion.name == _APART
    ordered = sorted(group, key=lambda row: row["place"])
    tried: dict[str, list[Row]] = {}
    for row in ordered if apart else filter(_is_final, ordered):
        tried.setdefault(row["hyperparameters"], []).append(row)
    seeds = {row["seed"] for rows in tried.values() for row in rows}
    seeds |= {run.seed for run in planned if _serves(run, first, apart)}
    candidates = [
        _candidate(json.loads(key), _scores(rows, criterion), sorted(seeds))
        for key, rows in tried.items()
    ]
    eligible = {place: each.score for place, each in enumerate(candidates) if each.eligible}
    chosen = first_best({place: score.mean for place, score in eligible.items() if score})
    if chosen is None and not any(map(_is_final, itertools.chain.from_iterable(tried.values()))):
        return None
    results: list[float] = []
    if chosen is not None:
        rows = sorted(filter(_is_final, [*tried.values()][chosen]), key=lambda row: row["seed"])
        results = [float(row[f"{criterion.model}_target_accuracy"]) for row in rows]
    names = sorted({name for each in candidates for name in each.hyperparameters})
    values = [[each.hyperparameters.get(name) for each in candidates] for name in names]
    conditions = json.loads(first["conditions"])
    return Choice(
        data=first["data"],
        target=first["target"],
        method=first["method_name"],
        backbone=str(conditions.get("backbone", "")),
        conditions=conditions,
        searched=[n for n, of in zip(names, values, strict=True) if any(v != of[0] for v in of)],
        seeds=sorted(seeds),
        candidates=candidates,
        chosen=chosen,
        needs="" if chosen is not None else _needs(criterion, group),
        target_accuracy=Summary.of(results) if results else None,
        unfinished=sum(_serves(run, first, apart) for run in waiting),
    )


def _is_final(row: Row) -> bool:
    """Whether the run holds out the target alone."""
    return row["other"] is None


def _serves(run: PlannedRun, row: Row, apart: bool) -> bool:
    """Whether a planned run is of the row's group; `apart` counts those without a source too."""
    if (run.data, run.method) != (row["data"], row["method_name"]):
        return False
    if not run.without:
        return bool(run.target == row["target"])
    return apart and row["target"] in (run.target, *run.without)


def _scores(rows: list[Row], criterion: Criterion) -> dict[int, float]:
    """Of a candidate, by seed, where the runs that it takes are there."""
    if criterion.name == _APART:
        found: dict[int, dict[str, float]] = {}
        for row in sorted(rows, key=lambda row: row["own"]):  # of two, the own target's counts
            if row["other"] in row["best_test_accuracy"]:
                accuracy = row["best_test_accuracy"][row["other"]]
                found.setdefault(row["seed"], {})[row["other"]] = accuracy
        sources = set(rows[0]["domains"]) - {rows[0]["target"]}
        return {
            seed: math.fsum(of_source.values()) / len(sources)
            for seed, of_source in found.items()
            if of_source.keys() == sources
        }
    oracle = "last_target_validation_accuracy"
    column = oracle if criterion.name == "oracle" else "best_validation_accuracy"
    scores = {row["seed"]: float(row[column]) for row in rows}
    return {seed: score for seed, score in scores.items() if not math.isnan(score)}


def _candidate(values: dict[str, Any], scores: dict[int, float], seeds: list[int]) -> Candidate:
    missing = [str(seed) for seed in seeds if seed not in scores]
    lacks = f"seed{'s' if len(missing) > 1 else ''} {', '.join(missing)}" if missing else ""
    found = [scores[seed] for seed in sorted(scores)]
    score = Summary.of(found) if found else None
    return Candidate(hyperparameters=values, score=score, lacks=lacks)


def first_best(scores: Mapping[int, float]) -> int | None:
    """The position of the highest score, of equal ones the first; None where there is none."""
    highest = max(scores.values(), default=0.0)
    return min((place for place, score in scores.items() if score >= highest - _TIE), default=None)


def edges(choice: Choice) -> list[Edge]:
    """The numbers chosen at the end of what was tried, of at least three: of two each is at an end.

    A 0 is none, for hardly one can be below it; nor is one where another value has the same score;
    nor is any while planned runs, which may be those beyond, are not finished.
    """
    chosen = choice.candidate
    if chosen is None or choice.unfinished:
        return []
    scores = [
        each.score.mean if each.eligible and each.score else 0.0 for each in choice.candidates
    ]
    found = []
    for name in choice.searched:
        values = [each.hyperparameters.get(name) for each in choice.candidates]
        numbers = sorted({value for value in values if isinstance(value, int | float)})
        if len(numbers) < 3 or not all(value in numbers for value in values):
            continue
        value, largest = chosen.hyperparameters[name], numbers[-1]
        tied = {v for v, score in zip(values, scores, strict=True) if score >= max(scores) - _TIE}
        if tied == {value} and (value == largest or value == numbers[0] != 0):
            found.append(Edge(name, value, value == largest, len(numbers)))
    return found


def _needs(criterion: Criterion, group: list[Row]) -> str:
    if criterion.name == _APART:
        every = "" if all(map(_is_final, group)) else ", with every seed of one candidate"
        return f"runs that leave out each source domain too (--leave-one-domain-out){every}"
    if criterion.name == "oracle":
        return "the accuracy on the target's validation images, with every seed of one candidate"
    return "every seed of one candidate"
