"""What a study of tasks against domains found, as tables and sentences."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from gradsurgery.atomic import atomic_file
from gradsurgery.documents.tasks_vs_domains import TasksStudy
from gradsurgery.errors import DataError
from gradsurgery.report.section import Section, Table, counted, plain_table
from gradsurgery.report.tables import section_markdown
from gradsurgery.results.tasks_study import (
    OUTCOMES,
    Outcome,
    by_seed,
    gradient_frame,
    layer_frame,
    outcomes,
)

NONE = "–"


def write_tasks_study(study: TasksStudy, directory: Path) -> list[str]:
    """Write tables and figures into `directory`; what there is to say of them.

    Raises `DataError` where no run is finished yet.
    """
    from gradsurgery.report.figures.style import save
    from gradsurgery.report.figures.tasks import draw_dials, draw_tasks

    if not study.runs:
        raise DataError(f"{study.name}: no run of the study is finished; repeat its command")
    with atomic_file(directory / "tasks-vs-domains.md") as temporary:
        temporary.write_text(section_markdown(tasks_section(study)), encoding="utf-8")
    png, _ = save(draw_tasks(study), directory / "tasks-vs-domains")
    if (turned := draw_dials(study)) is not None:
        save(turned, directory / "tasks-vs-domains-dials")
    return [*tasks_sentences(study), f"tables and figures: {directory} ({png.name})"]


def tasks_section(study: TasksStudy) -> Section:
    """All tables."""
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
    return Section("tasks-vs-domains", title, blocks)


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
    for grouping in o.groupings:
        of_grouping = plain[plain["grouping"] == grouping]
        if of_grouping.empty:
            continue
        expected, negative = of_grouping["expected"].median(), of_grouping["negative"].mean()
        sentences.append(
            f"{grouping}: expected cosine across groups {_number(expected)}, {_percent(negative)} "
            "of the pairs negative."
        )
        for rule in o.rules[1:]:
            compared = [
                _words(each) for each in found if (each.grouping, each.rule) == (grouping, rule)
            ]
            if compared and f"{rule}.cosine" in of_grouping:
                cosine = _number(of_grouping[f"{rule}.cosine"].mean(), 3)
                sentences.append(f"  {rule}: cosine with the sum {cosine}; {', '.join(compared)}.")
    return sentences


def _words(outcome: Outcome) -> str:
    """The difference from the first rule, and its p."""
    versus = outcome.versus
    if versus is None:
        return ""
    what = {"loss": "training loss", "held_out": "held out", "unseen": "unseen"}[outcome.name]
    digits, unit = (3, "") if outcome.name == "loss" else (1, " points")
    return f"{what} {versus.difference:+.{digits}f}{unit} (p = {versus.p:.2g})"


def _cosines_table(study: TasksStudy, plain: pd.DataFrame) -> Table:
    rows = []
    for grouping in study.options.groupings:
        if not (of_grouping := plain[plain["grouping"] == grouping]).empty:
            means = [_over_seeds(plain, grouping, name) for name in ("within", "across")]
            spans = [
                " to ".join(_number(of_grouping[f"{kind}.{end}"].mean()) for end in ("low", "high"))
                for kind in ("within", "across")
            ]
            expected = _number(of_grouping["expected"].median())
            negative = _over_seeds(plain, grouping, "negative")
            rows.append([grouping, means[0], spans[0], means[1], spans[1], expected, negative])
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
    frame = layer_frame(study)
    rows = []
    for grouping in study.options.groupings:
        plain = frame[frame["dial"].isna()] if len(frame) else frame
        of_grouping = plain[plain["grouping"] == grouping] if len(plain) else plain
        for _, layer in of_grouping.groupby("place") if len(of_grouping) else ():
            means = layer[["within", "across", "negative"]].astype(float).mean()
            expected = float(layer["expected"].astype(float).median())
            name = str(layer["name"].iloc[0])
            values = (means["within"], means["across"], expected, means["negative"])
            rows.append([grouping, name, *map(_number, values)])
    return plain_table(
        "The same by layers",
        ["grouping", "layers", "within", "across", "expected", "negative pairs"],
        rows,
    )


def _effects_table(study: TasksStudy, plain: pd.DataFrame) -> Table:
    columns = ("length", "cosine", "removed", "alike")
    rows = []
    for grouping in study.options.groupings:
        of_grouping = plain[plain["grouping"] == grouping]
        for rule in study.options.rules:
            if f"{rule}.cosine" not in of_grouping or of_grouping.empty:
                continue
            bend = of_grouping[f"{rule}.bend"].dropna()
            rows.append(
                [
                    grouping,
                    rule,
                    *(_over_seeds(plain, grouping, f"{rule}.{name}", 3) for name in columns),
                    _number(bend.median()) if len(bend) else NONE,
                    _percent(float((bend > 1).mean())) if len(bend) else NONE,
                ]
            )
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
    rows = []
    by_name = {(each.grouping, each.rule, each.name): each for each in found}
    for grouping in study.options.groupings:
        for rule in study.options.rules:
            cells = [by_name.get((grouping, rule, name)) for name in OUTCOMES]
            if cells[0] is not None:
                texts = [
                    _outcome(each, digits) for each, digits in zip(cells, (3, 1, 1), strict=True)
                ]
                rows.append([grouping, rule, *texts])
    first = study.options.rules[0]
    return plain_table(
        "What training comes to",
        ["grouping", "rule", "training loss", "held-out accuracy", "accuracy on the unseen domain"],
        rows,
        notes=[
            f"Means over the tasks and the seeds; in brackets the difference from {first} and its "
            "95 % bootstrap interval. * p < 0.05 by the paired Wilcoxon test, † after Holm's "
            "correction over the table."
        ],
    )


def _outcome(outcome: Outcome | None, digits: int) -> str:
    if outcome is None:
        return NONE
    mean = math.fsum(outcome.values) / len(outcome.values)
    text = f"{mean:.{digits}f}"
    if (versus := outcome.versus) is None:
        return text
    marks = "†" if versus.significant_corrected else "*" if versus.significant else ""
    span = f"{versus.low:+.{digits}f} to {versus.high:+.{digits}f}"
    return f"{text}{marks} ({versus.difference:+.{digits}f}; {span})"


def _dial_tables(study: TasksStudy, gradients: pd.DataFrame) -> Iterator[Table]:
    for dial, values in study.dials.items():
        rows = []
        usual = float(getattr(study.options, dial))
        for value in sorted({*values, usual}):
            turned = gradients["dial"] == dial
            at = gradients[turned & (gradients["value"] == value)]
            found = outcomes(study, dial, value)
            if value == usual:
                at = gradients[gradients["dial"].isna()]
                found = outcomes(study)
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
    differences = []
    for rule in ("pcgrad", "agr-sum"):
        for name, digits in (("loss", 3), ("unseen", 1)):
            matching = [
                each.versus
                for each in found
                if (each.grouping, each.rule, each.name) == (grouping, rule, name)
            ]
            versus = matching[0] if matching else None
            differences.append(
                NONE
                if versus is None
                else f"{versus.difference:+.{digits}f} ({versus.low:+.{digits}f} to "
                f"{versus.high:+.{digits}f})"
            )
    cosine = frame["pcgrad.cosine"].mean() if "pcgrad.cosine" in frame else math.nan
    return [
        _number(frame["expected"].median()),
        _percent(frame["negative"].mean()),
        _number(cosine, 3),
        *differences,
    ]


def _over_seeds(frame: pd.DataFrame, grouping: str, column: str, digits: int = 2) -> str:
    """Mean and standard deviation over the seeds of the means over the steps."""
    values = by_seed(frame, column).get(grouping)
    if values is None or not len(values):
        return NONE
    mean, spread = float(values.mean()), float(values.std(ddof=1))
    text = f"{mean:z.{digits}f}"
    return text if math.isnan(spread) else f"{text} ± {spread:.{digits}f}"


def _number(value: float, digits: int = 2) -> str:
    return NONE if value is None or math.isnan(value) else f"{value:z.{digits}f}"


def _percent(value: float) -> str:
    return NONE if math.isnan(value) else f"{100 * value:.0f} %"
