"""What the measurements of a study say: means over its runs, as numbers, sentences and tables."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from gradsurgery.documents.similarity import Measurement, SimilarityStudy
from gradsurgery.errors import DataError
from gradsurgery.report.section import Listing, Section, plain_table
from gradsurgery.report.tables import section_markdown
from gradsurgery.results.statistics import MeanInterval, mean_interval


@dataclass(frozen=True)
class CurvePoint:
    """One step: the means over the runs that were measured there."""

    step: int
    label: str
    within: MeanInterval
    across: MeanInterval


@dataclass(frozen=True)
class SimilaritySummary:
    """Means over the runs of a study; of each run, its mean over the measurements is taken.

    Args:
        within: mean cosine within a domain.
        across: mean cosine across domains.
        difference: of the two, run by run.
        pairs: mean cosine by pairs of the study's domains; None for a pair never measured.
        higher: measurements in which `within` is above `across`.
        measurements: that have both.
        curve: by step.
    """

    within: MeanInterval
    across: MeanInterval
    difference: MeanInterval
    pairs: list[list[float | None]]
    higher: int
    measurements: int
    curve: list[CurvePoint]


def summarize_similarity(study: SimilarityStudy) -> SimilaritySummary:
    """The study's means, with 95 % intervals over its runs.

    Raises `DataError` where no measurement has pairs within and across.
    """
    runs = [[m for m in run.measurements if _complete(m)] for run in study.runs]
    runs = [run for run in runs if run]
    if not runs:
        raise DataError(
            f"no measurement of {study.data} compares domains; measure fewer samples per domain"
        )
    within = [_mean(m.within for m in run) for run in runs]
    across = [_mean(m.across for m in run) for run in runs]
    measured = [m for run in runs for m in run]
    return SimilaritySummary(
        within=mean_interval(within),
        across=mean_interval(across),
        difference=mean_interval([w - a for w, a in zip(within, across, strict=True)]),
        pairs=[[_pair(measured, d, e) for e in study.domains] for d in study.domains],
        higher=sum((m.within or 0) > (m.across or 0) for m in measured),
        measurements=len(measured),
        curve=_curve(measured),
    )


def similarity_sentences(study: SimilarityStudy) -> list[str]:
    """What came out, and which domains were left out."""
    return _sentences(study, summarize_similarity(study))


def similarity_section(study: SimilarityStudy) -> Section:
    """The study as a section of a report: its sentences, then its tables."""
    summary = summarize_similarity(study)
    intervals = {
        "within a domain": summary.within,
        "across domains": summary.across,
        "within − across": summary.difference,
    }
    count = len(study.runs)
    overall = plain_table(
        "Mean cosine similarity of two samples' gradients",
        ["pairs", "mean", f"95 % interval over {count} run{'s' if count > 1 else ''}"],
        [[name, f"{each.mean:.4f}", _between(each)] for name, each in intervals.items()],
    )
    pairs = plain_table(
        "By pairs of domains",
        ["domain", *study.domains],
        [
            [domain, *("" if value is None else f"{value:.3f}" for value in row)]
            for domain, row in zip(study.domains, summary.pairs, strict=True)
        ],
    )
    title = "Gradient similarity within and across domains"
    return Section("similarity", title, [Listing(_sentences(study, summary)), overall, pairs])


def similarity_markdown(study: SimilarityStudy) -> str:
    """Sentences and tables as Markdown, with the means by step at the end."""
    section = similarity_section(study)
    rows = [
        [str(p.step), p.label, f"{p.within.mean:.4f}", f"{p.across.mean:.4f}"]
        for p in summarize_similarity(study).curve
    ]
    steps = plain_table("Over training", ["step", "class", "within", "across"], rows)
    return section_markdown(Section(section.identity, section.title, [*section.blocks, steps]))


def similarity_csv(study: SimilarityStudy) -> str:
    """One row a measurement and pair of domains: seed, step, class, domains, mean cosine."""
    import pandas as pd

    columns = ["seed", "step", "class", "domain", "other", "cosine"]
    rows = [
        [run.seed, m.step, m.label, domain, m.domains[e], m.cosines[d][e]]
        for run in study.runs
        for m in run.measurements
        for d, domain in enumerate(m.domains)
        for e in range(d, len(m.domains))
    ]
    frame = pd.DataFrame(rows, columns=columns)
    text = frame.to_csv(index=False, lineterminator="\n", float_format="%.6f")
    return str(text)


def _complete(measurement: Measurement) -> bool:
    return measurement.within is not None and measurement.across is not None


def _mean(values: Iterable[float | None]) -> float:
    found = [value for value in values if value is not None]
    return math.fsum(found) / len(found)


def _pair(measured: list[Measurement], domain: str, other: str) -> float | None:
    found = [
        value
        for m in measured
        if domain in m.domains and other in m.domains
        if (value := m.cosines[m.domains.index(domain)][m.domains.index(other)]) is not None
    ]
    return math.fsum(found) / len(found) if found else None


def _curve(measured: list[Measurement]) -> list[CurvePoint]:
    points = []
    for step in sorted({m.step for m in measured}):
        here = [m for m in measured if m.step == step]
        within = [m.within for m in here if m.within is not None]
        across = [m.across for m in here if m.across is not None]
        points.append(CurvePoint(step, here[0].label, mean_interval(within), mean_interval(across)))
    return points


def _between(interval: MeanInterval) -> str:
    if interval.low is None or interval.high is None:
        return "one run"
    return f"{interval.low:.4f} to {interval.high:.4f}"


def _sentences(study: SimilarityStudy, summary: SimilaritySummary) -> list[str]:
    within, across = summary.within.mean, summary.across.mean
    relation = "more" if within > across else "no more"
    c = study.configuration
    sentences = [
        f"Gradients of two samples of one class agree {relation} within a domain (mean cosine "
        f"{within:.3f}) than across domains ({across:.3f}): {study.data} with {c.backbone}, "
        f"trained by {c.method} for {c.iterations} steps with {c.target} held out.",
        f"Within is above across in {summary.higher} of {summary.measurements} measurements.",
    ]
    skipped = [each for run in study.runs for m in run.measurements for each in m.skipped.items()]
    for (domain, reason), times in Counter(skipped).items():
        sentences.append(f"{domain} was left out {times} times: {reason}.")
    return sentences
