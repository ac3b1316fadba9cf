"""What a study of tasks against domains comes to: frames, tests, tables and sentences."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import NamedTuple

import pandas as pd

from gradsurgery.documents.tasks_vs_domains import LayerCosines, TasksStudy
from gradsurgery.report.section import (
    ABSENT,
    Listing,
    Section,
    Table,
    counted,
    percent,
    plain_table,
    rounded,
)
from gradsurgery.results.statistics import PairedComparison, compare_paired, corrected
from gradsurgery.seeds import derive_seed

OUTCOMES = {"loss": 3, "held_out": 1, "unseen": 1}
"""Mean training loss of the groups, and accuracies: means over the tasks that were trained.

With the digits that each is printed to."""
_ABOUT = {"grouping", "dial", "value", "seed"}
_LAYER = ["grouping", "place", *LayerCosines.model_fields]


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
            row = run.model_dump(include=_ABOUT) | {"step": measured.step}
            row |= measured.shared.model_dump(exclude={"name", "components"})
            of_pairs = {"within": measured.within_deciles, "across": measured.across_deciles}
            for kind, deciles in of_pairs.items():
                row[f"{kind}.low"], _, row[f"{kind}.high"] = deciles or (None,) * 3
            whole = measured.curvature_sum
            for effect in measured.effects:
                lengths = effect.model_dump(exclude={"rule", "curvature"})
                row |= {f"{effect.rule}.{name}": value for name, value in lengths.items()}
                row[f"{effect.rule}.bend"] = None
                if effect.curvature is not None and whole is not None and whole > 0:
                    row[f"{effect.rule}.bend"] = effect.curvature / whole
            rows.append(row)
    frame = pd.DataFrame(rows, columns=None if rows else ["grouping", "dial", "step"])
    return frame.astype(dict.fromkeys(frame.columns.difference(["grouping", "dial"]), float))


def outcome_frame(study: TasksStudy) -> pd.DataFrame:
    """A row a run: grouping, rule, dial, value, seed, and the `OUTCOMES`; accuracies in percent."""
    return pd.DataFrame(
        [
            run.model_dump(include=_ABOUT | {"rule"})
            | {
                "loss": run.losses[-1],
                "held_out": 100 * fmean(run.held_out.values()),
                "unseen": 100 * fmean(run.unseen.values()),
            }
            for run in study.runs
        ]
    )


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
    at = (frame["dial"] == dial) & (frame["value"] == value) if dial else frame["dial"].isna()
    first, found = study.options.rules[0], []
    pairs = itertools.product(study.options.groupings, study.options.rules, OUTCOMES)
    for grouping, rule, name in pairs:
        here = frame[at & (frame["grouping"] == grouping)]
        by_rule = here.pivot(index="seed", columns="rule", values=name)
        if not {first, rule} <= set(by_rule):
            continue
        both = by_rule[list({first, rule})].dropna()
        values, versus = both[rule].tolist(), None
        if rule != first and values:
            seed = derive_seed(0, "tasks-vs-domains", grouping, rule, name) % 2**32
            versus = compare_paired(values, both[first].tolist(), seed=seed)
        if values:
            found.append(Outcome(grouping, rule, name, values, versus))
    tests = iter(corrected([each.versus for each in found if each.versus is not None]))
    return [each if each.versus is None else each._replace(versus=next(tests)) for each in found]


def tasks_section(study: TasksStudy) -> Section:
    """The sentences and all tables."""
    gradients = gradient_frame(study)
    plain = gradients[gradients["dial"].isna()]
    found = outcomes(study)
    blocks = [
        _cosines_table(study, plain),
        _layers_table(study),
        _effects_table(study, plain),
        _outcomes_table(study, found),
        *_dial_tables(study, gradients),
    ]
    title = f"Tasks against domains: {study.name}, {study.options.backbone}"
    return Section("tasks-vs-domains", title, [Listing(tasks_sentences(study)), *blocks])


def tasks_sentences(study: TasksStudy) -> list[str]:
    """What was run, and for each grouping what the gradients and the rules did."""
    o = study.options
    plain = gradient_frame(study)
    plain = plain[plain["dial"].isna()]
    seeds = len({run.seed for run in study.runs if run.dial is None})
    sentences = [
        f"{study.name}, {o.backbone}: {o.groups} groups of {o.batch_size} images a step, "
        f"{o.iterations} steps, {counted(seeds, 'seed')}, {o.target} unseen."
    ]
    found = outcomes(study)
    for grouping, of_grouping in _by_grouping(study, plain):
        expected, negative = of_grouping["expected"].median(), of_grouping["negative"].mean()
        own = of_grouping["seed"].nunique()
        only = f" ({counted(own, 'seed')})" if own < seeds else ""
        sentences.append(
            f"{grouping}{only}: expected cosine across groups {rounded(expected)}, "
            f"{percent(negative)} of the pairs negative."
        )
        for rule in o.rules[1:]:
            compared = [
                _words(each) for each in found if (each.grouping, each.rule) == (grouping, rule)
            ]
            if compared and f"{rule}.cosine" in of_grouping:
                cosine = rounded(of_grouping[f"{rule}.cosine"].mean(), 3)
                sentences.append(
                    f"{grouping}, {rule}: cosine with the sum {cosine}; {', '.join(compared)}."
                )
    return sentences


def _words(outcome: Outcome) -> str:
    """The difference from the first rule, and its p."""
    versus = outcome.versus
    if versus is None:
        return ""
    what = {"loss": "training loss", "held_out": "held out", "unseen": "unseen"}[outcome.name]
    unit = "" if outcome.name == "loss" else " points"
    difference, _ = _difference(versus, outcome.name)
    return f"{what} {difference}{unit} (p = {versus.p:.2g})"


def _by_grouping(study: TasksStudy, frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of each grouping that has any, in the order of the study."""
    found = dict(iter(frame.groupby("grouping")))
    return [(each, found[each]) for each in study.options.groupings if each in found]


def _cosines_table(study: TasksStudy, plain: pd.DataFrame) -> Table:
    rows = []
    for grouping, frame in _by_grouping(study, plain):
        row = [grouping]
        for kind in ("within", "across"):
            ends = [rounded(frame[f"{kind}.{end}"].mean()) for end in ("low", "high")]
            row += [over_seeds(frame, kind), " to ".join(ends)]
        rows.append([*row, rounded(frame["expected"].median()), over_seeds(frame, "negative")])
    return plain_table(
        "Cosines of the groups' gradients, over all steps measured",
        [
            *("grouping", "within a group", "four fifths of these", "across groups"),
            *("four fifths of these", "expected", "share of negative pairs"),
        ],
        rows,
        notes=[
            "Mean ± standard deviation over the seeds. Expected: without the noise of the batches, "
            "the median, since it is a ratio of two estimates. All parameters that the groups "
            "share count."
        ],
    )


def _layers_table(study: TasksStudy) -> Table:
    names = ["within", "across", "expected", "negative"]
    measured = [
        {"grouping": run.grouping, "place": place} | layer.model_dump()
        for run in study.runs
        if run.dial is None
        for each in run.measured
        for place, layer in enumerate(each.layers)
    ]
    rows = []
    for grouping, frame in _by_grouping(study, pd.DataFrame(measured, columns=_LAYER)):
        for _, layer in frame.groupby("place"):
            values = layer[names].astype(float).mean()
            values["expected"] = layer["expected"].astype(float).median()
            rows.append([grouping, str(layer["name"].iloc[0]), *map(rounded, values)])
    return plain_table(
        "The same by layers",
        ["grouping", "layers", "within", "across", "expected", "negative pairs"],
        rows,
    )


def _effects_table(study: TasksStudy, plain: pd.DataFrame) -> Table:
    columns = ("length", "cosine", "removed", "alike")
    rows = []
    for grouping, frame in _by_grouping(study, plain):
        for rule in study.options.rules:
            if f"{rule}.cosine" in frame:
                bend = frame[f"{rule}.bend"].dropna()
                effects = [over_seeds(frame, f"{rule}.{name}", 3) for name in columns]
                bends = [rounded(bend.median()), percent((bend > 1).mean())]
                rows.append([grouping, rule, *effects, *bends])
    return plain_table(
        "What a rule makes of the sum s of the gradients: u, and takes away r = s − u",
        [
            *("grouping", "rule", "‖u‖/‖s‖", "cosine of u, s", "‖r‖/‖s‖"),
            *("cosine of r in two batches", "curvature along r by along s", "above 1"),
        ],
        rows,
        notes=["Along the steps of the first rule; of the curvature the median."],
    )


def _outcomes_table(study: TasksStudy, found: Sequence[Outcome]) -> Table:
    rows: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for each in found:
        rows[each.grouping, each.rule].append(_outcome(each))
    first = study.options.rules[0]
    return plain_table(
        "What training comes to",
        ["grouping", "rule", "training loss", "held-out accuracy", "accuracy on the unseen domain"],
        [[*about, *texts] for about, texts in rows.items()],
        notes=[
            f"Means over the tasks and the seeds; in brackets the difference from {first} and its "
            "95 % bootstrap interval. * p < 0.05 by the paired Wilcoxon test, † after Holm's "
            "correction over the table."
        ],
    )


def _outcome(outcome: Outcome) -> str:
    text = f"{fmean(outcome.values):.{OUTCOMES[outcome.name]}f}"
    if (versus := outcome.versus) is None:
        return text
    marks = "†" if versus.significant_corrected else "*" if versus.significant else ""
    return f"{text}{marks} ({'; '.join(_difference(versus, outcome.name))})"


def _difference(versus: PairedComparison, name: str) -> tuple[str, str]:
    """The difference in the outcome called so, and its interval."""
    numbers = (versus.difference, versus.low, versus.high)
    difference, low, high = (f"{number:+z.{OUTCOMES[name]}f}" for number in numbers)
    return difference, f"{low} to {high}"


def _dial_tables(study: TasksStudy, gradients: pd.DataFrame) -> Iterator[Table]:
    for dial, values in study.dials.items():
        rows, turned = [], gradients["dial"] == dial
        usual = float(getattr(study.options, dial))
        for value in sorted({*values, usual}):
            at = gradients[turned & (gradients["value"] == value)]
            found = outcomes(study, dial, value)
            if value == usual:
                at, found = gradients[gradients["dial"].isna()], outcomes(study)
            for grouping in dict.fromkeys(gradients.loc[turned, "grouping"]):
                of_grouping = at[at["grouping"] == grouping]
                if not of_grouping.empty:
                    rows.append([f"{value:g}", grouping, *_dial_row(of_grouping, found, grouping)])
        if rows:
            yield plain_table(
                f"Dial: {dial}",
                [
                    *("value", "grouping", "expected cosine", "negative pairs"),
                    *("cosine of PCGrad and sum", "pcgrad, loss", "pcgrad, unseen"),
                    *("agr-sum, loss", "agr-sum, unseen"),
                ],
                rows,
                notes=["Differences from the first rule, over the seeds."],
            )


def _dial_row(frame: pd.DataFrame, found: Sequence[Outcome], grouping: str) -> list[str]:
    tests = {(e.rule, e.name): e.versus for e in found if e.grouping == grouping}
    differences = []
    for rule, name in itertools.product(("pcgrad", "agr-sum"), ("loss", "unseen")):
        test = tests.get((rule, name))
        differences.append("{} ({})".format(*_difference(test, name)) if test else ABSENT)
    cosine = frame["pcgrad.cosine"].mean() if "pcgrad.cosine" in frame else math.nan
    return [
        rounded(frame["expected"].median()),
        percent(frame["negative"].mean()),
        rounded(cosine, 3),
        *differences,
    ]


def over_seeds(frame: pd.DataFrame, column: str, digits: int = 2) -> str:
    """Mean and standard deviation over the seeds of the means over the steps."""
    values = frame.groupby("seed")[column].mean().dropna()
    if values.empty:
        return ABSENT
    text = f"{values.mean():z.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {values.std(ddof=1):.{digits}f}"
