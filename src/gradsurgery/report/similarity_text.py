"""What the measurements of a study say: means over its runs, as numbers, sentences and tables."""

import math
from collections import Counter
from typing import NamedTuple

from gradsurgery.documents.studies import Measurement, SimilarityStudy
from gradsurgery.errors import DataError
from gradsurgery.report.section import Listing, Section, counted, plain_table
from gradsurgery.results.statistics import MeanInterval, mean_interval


class CurvePoint(NamedTuple):
    """One step: the means over the runs that were measured there."""

    step: int
    label: str
    within: MeanInterval
    across: MeanInterval


class SimilaritySummary(NamedTuple):
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
    import pandas as pd

    about = [(r, m) for r, run in enumerate(study.runs) for m in run.measurements]
    rows = [(r, m.step, m.label, m.within, m.across) for r, m in about if _compares(m)]
    if not rows:
        raise DataError(
            f"no measurement of {study.data} compares domains; measure fewer samples per domain"
        )
    frame = pd.DataFrame(rows, columns=["run", "step", "label", "within", "across"])
    of_run = frame.groupby("run")[["within", "across"]].mean()
    curve = [
        CurvePoint(
            int(str(step)),
            str(here["label"].iloc[0]),
            mean_interval(list(here["within"])),
            mean_interval(list(here["across"])),
        )
        for step, here in frame.groupby("step")
    ]
    return SimilaritySummary(
        within=mean_interval(list(of_run["within"])),
        across=mean_interval(list(of_run["across"])),
        difference=mean_interval(list(of_run["within"] - of_run["across"])),
        pairs=[[_pair(study, d, e) for e in study.domains] for d in study.domains],
        higher=int((frame["within"] > frame["across"]).sum()),
        measurements=len(frame),
        curve=curve,
    )


def similarity_section(study: SimilarityStudy) -> Section:
    """The study as a section of a report: its sentences, then its tables."""
    summary = summarize_similarity(study)
    intervals = {
        "within a domain": summary.within,
        "across domains": summary.across,
        "within − across": summary.difference,
    }
    pairs = zip(study.domains, summary.pairs, strict=True)
    tables = [
        plain_table(
            "Mean cosine similarity of two samples' gradients",
            ["pairs", "mean", f"95 % interval over {counted(len(study.runs), 'run')}"],
            [[name, f"{each.mean:z.4f}", _between(each)] for name, each in intervals.items()],
        ),
        plain_table(
            "By pairs of domains",
            ["domain", *study.domains],
            [[name, *("" if v is None else f"{v:z.3f}" for v in row)] for name, row in pairs],
        ),
        plain_table(
            "Over training",
            ["step", "class", "within", "across"],
            [
                [str(p.step), p.label, f"{p.within.mean:z.4f}", f"{p.across.mean:z.4f}"]
                for p in summary.curve
            ],
        ),
    ]
    title = "Gradient similarity within and across domains"
    return Section("similarity", title, [Listing(similarity_sentences(study)), *tables])


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


def _compares(measurement: Measurement) -> bool:
    return None not in (measurement.within, measurement.across)


def _pair(study: SimilarityStudy, domain: str, other: str) -> float | None:
    """The mean cosine of a pair over the measurements that compare domains."""
    found = [
        value
        for run in study.runs
        for m in run.measurements
        if _compares(m) and {domain, other} <= set(m.domains)
        if (value := m.cosines[m.domains.index(domain)][m.domains.index(other)]) is not None
    ]
    return math.fsum(found) / len(found) if found else None


def _between(interval: MeanInterval) -> str:
    if interval.low is None or interval.high is None:
        return "one run"
    return f"{interval.low:z.4f} to {interval.high:z.4f}"


def similarity_sentences(study: SimilarityStudy) -> list[str]:
    """What came out, and which domains were left out."""
    summary = summarize_similarity(study)
    within, across = summary.within.mean, summary.across.mean
    relation = "more" if within > across else "no more"
    c = study.configuration
    sentences = [
        f"Gradients of two samples of one class agree {relation} within a domain (mean cosine "
        f"{within:z.3f}) than across domains ({across:z.3f}): {study.data} with {c.backbone}, "
        f"trained by {c.method} for {c.iterations} steps with {c.target} held out.",
        f"Within is above across in {summary.higher} of {summary.measurements} measurements.",
    ]
    skipped = [each for run in study.runs for m in run.measurements for each in m.skipped.items()]
    for (domain, reason), times in Counter(skipped).items():
        sentences.append(f"{domain} was left out {times} times: {reason}.")
    return sentences
