"""What the runs of a study of tasks against domains come to, by grouping and rule."""

from collections.abc import Sequence
from math import fsum
from typing import NamedTuple

import pandas as pd

from gradsurgery.documents.tasks_vs_domains import TasksRun, TasksStudy
from gradsurgery.results.statistics import PairedComparison, compare_paired, corrected
from gradsurgery.seeds import derive_seed

OUTCOMES = ("loss", "held_out", "unseen")
"""Mean training loss of the groups, and accuracies: means over the tasks that were trained."""


def gradient_frame(study: TasksStudy) -> pd.DataFrame:
    """A row a measurement: grouping, dial, value, seed, step and what was measured.

    `within`, `across`, `expected` and `negative` are those of the parameters that groups share, and
    `within.low` to `within.high` four fifths of the pairs (and so `across.low` to `.high`). For
    each rule R but the sum there are `R.length`, `R.cosine`, `R.removed`, `R.alike` and `R.bend`,
    the curvature along what R takes away by that along the sum.
    """
    rows = []
    for run in study.runs:
        for measured in run.measured:
            row = _about(run) | {"step": measured.step}
            row |= measured.shared.model_dump(exclude={"name", "components"})
            for kind in ("within", "across"):
                deciles = getattr(measured, f"{kind}_deciles")
                low, _, high = deciles or (None,) * 3
                row |= {f"{kind}.low": low, f"{kind}.high": high}
            for effect in measured.effects:
                for name in ("length", "cosine", "removed", "alike"):
                    row[f"{effect.rule}.{name}"] = getattr(effect, name)
                bend, whole = effect.curvature, measured.curvature_sum
                known = bend is not None and whole is not None and whole > 0
                row[f"{effect.rule}.bend"] = bend / whole if known else None  # type: ignore[operator]
            rows.append(row)
    frame = pd.DataFrame(rows, columns=None if rows else ["grouping", "dial", "step"])
    texts = ("grouping", "dial")
    return frame.astype({name: float for name in frame.columns if name not in texts})


def layer_frame(study: TasksStudy) -> pd.DataFrame:
    """A row a measurement and a group of layers, from the input to the output."""
    return pd.DataFrame(
        [
            _about(run) | {"step": measured.step, "place": place} | layer.model_dump()
            for run in study.runs
            for measured in run.measured
            for place, layer in enumerate(measured.layers)
        ]
    )


def outcome_frame(study: TasksStudy) -> pd.DataFrame:
    """A row a run: grouping, rule, dial, value, seed, and the `OUTCOMES`; accuracies in percent."""
    return pd.DataFrame(
        [
            _about(run)
            | {
                "rule": run.rule,
                "loss": run.losses[-1],
                "held_out": 100 * _mean(run.held_out.values()),
                "unseen": 100 * _mean(run.unseen.values()),
            }
            for run in study.runs
        ]
    )


def _about(run: TasksRun) -> dict[str, object]:
    return {
        "grouping": run.grouping,
        "dial": run.dial,
        "value": run.value,
        "seed": run.seed,
    }


def _mean(values: object) -> float:
    listed = list(values)  # type: ignore[call-overload]
    return fsum(listed) / len(listed)


class Outcome(NamedTuple):
    """One of the `OUTCOMES` for a grouping and a rule; `versus` compares with the first rule."""

    grouping: str
    rule: str
    name: str
    values: Sequence[float]
    versus: PairedComparison | None


def outcomes(
    study: TasksStudy, dial: str | None = None, value: float | None = None
) -> list[Outcome]:
    """Every grouping, rule and outcome, over the seeds that both rules of a pair have.

    `p_holm` is corrected over all comparisons of this list.
    """
    frame = outcome_frame(study)
    if frame.empty:
        return []
    turned = frame[frame["dial"].isna() if dial is None else frame["dial"] == dial]
    if dial is not None:
        turned = turned[turned["value"] == value]
    first, *_ = study.options.rules
    found = []
    for grouping in study.options.groupings:
        of_grouping = turned[turned["grouping"] == grouping]
        for rule in study.options.rules:
            for name in OUTCOMES:
                seeds = of_grouping.pivot(index="seed", columns="rule", values=name)
                if rule not in seeds or first not in seeds:
                    continue
                both = seeds[[first, rule]].dropna() if rule != first else seeds[[first]].dropna()
                values = [float(each) for each in both[rule]]
                versus = None
                if rule != first and values:
                    seed = derive_seed(0, "tasks-vs-domains", grouping, rule, name)
                    baseline = [float(each) for each in both[first]]
                    versus = compare_paired(values, baseline, seed=seed % 2**32)
                if values:
                    found.append(Outcome(grouping, rule, name, values, versus))
    tests = iter(corrected([each.versus for each in found if each.versus is not None]))
    return [each if each.versus is None else each._replace(versus=next(tests)) for each in found]


def by_seed(frame: pd.DataFrame, column: str) -> dict[str, pd.Series]:
    """For each grouping the mean of a column over the steps, a value a seed."""
    if column not in frame:
        return {}
    means = frame.groupby(["grouping", "seed"])[column].mean().dropna()
    return {str(name): values.droplevel(0) for name, values in means.groupby(level=0)}
