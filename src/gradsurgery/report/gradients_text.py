"""What is said of gradients: where domains conflict, and how similar samples' gradients are."""

from collections import Counter
from collections.abc import Iterator
from statistics import fmean
from typing import NamedTuple

from gradsurgery.documents.studies import (
    Diagnosis,
    GroupConflict,
    Measurement,
    SimilarityStudy,
    Snapshot,
)
from gradsurgery.errors import DataError
from gradsurgery.report.section import (
    ABSENT,
    Listing,
    Section,
    Table,
    counted,
    first_of,
    percent,
    plain_table,
    rounded,
)
from gradsurgery.results.statistics import MeanInterval, mean_interval

_MUCH = 0.2  # of what would agree, that is lost to the domains
_MOST_COLUMNS = 40  # of a table with one for each domain
_FEWEST = 1000  # components of a group that a sentence names: of fewer, a fraction is too uncertain


def diagnosis_section(diagnosis: Diagnosis) -> Section:
    """The diagnosis as a section of a report: its sentences, then its tables."""
    title = f"Where the domains of {diagnosis.data} conflict"
    sentences = Listing(diagnosis_sentences(diagnosis))
    return Section("diagnosis", title, [sentences, *_tables(diagnosis)])


def diagnosis_sentences(diagnosis: Diagnosis) -> list[str]:
    """What the last snapshot says, and how it came to be."""
    last = diagnosis.snapshots[-1]
    held_out = "" if diagnosis.target is None else f", {diagnosis.target} held out"
    repeats, batch = diagnosis.options.repeats, diagnosis.options.batch_size
    when = f" after {last.step} steps" if last.step else ""
    opening = (
        f"{diagnosis.data}, {diagnosis.network}{when}{held_out}: mean over {repeats} "
        f"batch{'es' if repeats > 1 else ''} of {batch} images per domain."
    )
    if last.total.agreeing is None:
        return [opening, "No component has a gradient in any domain: there is nothing to compare."]
    sentences = [opening, _agreement(diagnosis, last), _worst(diagnosis, last)]
    sentences += [_left(last), *_course(diagnosis)]
    return [sentence for sentence in sentences if sentence]


def _agreement(diagnosis: Diagnosis, last: Snapshot) -> str:
    count = len(diagnosis.domains)
    agreeing = last.total.agreeing or 0.0
    if agreeing == 1:
        return f"The {count} domains agree in every component: there is no conflict."
    text = (
        f"The {count} domains agree in {percent(agreeing)} of the components; signs by chance "
        f"would agree in {percent(0.5 ** (count - 1))}"
    )
    if (shuffled := last.shuffled_agreeing) is None:
        return f"{text}."
    if shuffled - agreeing < 0.01 and agreeing >= (1 - _MUCH) * shuffled:
        verdict = "so it is the size of the batches that shows here, not the domains"
    elif shuffled - agreeing < 0.01:  # of many domains few components agree in any case
        verdict = f"of which the domains themselves cost {percent(1 - agreeing / shuffled)}"
    elif shuffled > 0.99:
        verdict = "so all the disagreement is the domains' doing"
    else:
        points = max(round(100 * shuffled) - round(100 * agreeing), 1)  # of what is shown
        part = counted(points, "point", f"of the disagreement {'is' if points == 1 else 'are'}")
        verdict = f"so {part} the domains' doing, and the rest comes from small batches"
    dealt = "the same images dealt out to the domains at random agree in"
    return f"{text}, and {dealt} {percent(shuffled)}, {verdict}."


def _worst(diagnosis: Diagnosis, last: Snapshot) -> str:
    domains = diagnosis.domains
    if last.total.agreeing == 1:
        return ""
    if len(domains) == 2:
        fraction = percent(last.total.against_rest[0])
        return (
            f"{domains[0]} and {domains[1]} disagree in {fraction} of the components; the cosine "
            f"of their gradients is {rounded(last.total.cosines[0][1])}{_where(last.groups, 0)}."
        )
    place = domains.index(last.most_conflicting)
    cosine = rounded(last.total.cosine_with_rest[place])
    if not _named(diagnosis, last):
        return (
            "No domain conflicts more with the rest than another, beyond chance: the lowest cosine "
            f"with the sum of the others is {cosine}, of {last.most_conflicting}."
        )
    return (
        f"{last.most_conflicting} conflicts most with the rest: the cosine of its gradient with "
        f"the sum of the others is {cosine}, the lowest in {last.times_most} of "
        f"{diagnosis.options.repeats} batches{_where(last.groups, place)}."
    )


def _named(diagnosis: Diagnosis, snapshot: Snapshot) -> bool:
    """Whether the most conflicting domain is so beyond chance."""
    if snapshot.stands_out is None:  # an older diagnosis, which says less
        return 2 * snapshot.times_most > diagnosis.options.repeats
    return snapshot.stands_out


def _where(groups: list[GroupConflict], domain: int) -> str:
    """The group of layers in which the domain's cosine with the others is lowest."""
    cosines = [(group.cosine_with_rest[domain], place) for place, group in enumerate(groups)]
    found = [(cosine, place) for cosine, place in cosines if cosine is not None]
    large = [(c, place) for c, place in found if groups[place].components >= _FEWEST]
    found = large if len(large) > 1 else found
    if len(found) < 2 or len({rounded(cosine) for cosine, _ in found}) == 1:
        return ""
    cosine, place = min(found)
    ends = {0: "the first layer", len(groups) - 1: "the last layer"}
    position = ends.get(place, f"part {place + 1} of {len(groups)}")
    return f", and lowest in {groups[place].name} ({position}: {rounded(cosine)})"


def _left(last: Snapshot) -> str:
    agreeing, length = last.total.agreeing or 0.0, last.total.kept_length
    if agreeing == 0:
        return "Agr-Sum leaves nothing of the update."
    rest = f" and {percent(length)} of its length."
    if length is None:
        rest = "; the sum of the gradients has no length to compare with."
    return f"Agr-Sum leaves {percent(agreeing)} of the update's components{rest}"


def _course(diagnosis: Diagnosis) -> list[str]:
    first, last = diagnosis.snapshots[0], diagnosis.snapshots[-1]
    sentences = []
    if len(diagnosis.snapshots) > 1:
        sentences.append(
            f"Over training the agreement went from {percent(first.total.agreeing)} at step "
            f"{first.step} to {percent(last.total.agreeing)} at step {last.step}."
        )
    logged = diagnosis.logged
    agreeing = [] if logged is None else [v for v in logged.agreeing if v is not None]
    if len(agreeing) > 1:
        sentences.append(
            f"The run itself saw {percent(agreeing[0])} agree at first and "
            f"{percent(agreeing[-1])} at the end."
        )
    return sentences


def _tables(diagnosis: Diagnosis) -> Iterator[Table]:
    domains, snapshots = diagnosis.domains, diagnosis.snapshots
    last, total = snapshots[-1], snapshots[-1].total
    rests = zip(total.cosine_with_rest, total.against_rest, strict=True)
    n = len(domains) if len(domains) <= _MOST_COLUMNS else 0  # more: diagnosis.json
    yield plain_table(
        "Cosine similarity of the domains' gradients",
        ["domain", *domains[:n], "all others", "components against all others"],
        [
            [domain, *map(rounded, row[:n]), rounded(rest), percent(against)]
            for domain, row, (rest, against) in zip(domains, total.cosines, rests, strict=True)
        ],
    )
    columns = ["layers", "components", "agree", "length that Agr-Sum leaves"]
    columns += [f"{domain} against the rest" for domain in domains[:n]]
    rows = [
        [g.name, f"{g.components:,}", *map(percent, (g.agreeing, g.kept_length, *g.against_rest))]
        for g in (*last.groups, total)
    ]
    rows = [row[: len(columns)] for row in rows]
    yield plain_table("By layers, from the input to the output", columns, rows)
    if len(snapshots) > 1:
        yield plain_table(
            "Over training",
            ["step", "agree", "agree when shuffled", "length left", "conflicts most"],
            [
                [
                    str(s.step),
                    *map(percent, (s.total.agreeing, s.shuffled_agreeing, s.total.kept_length)),
                    s.most_conflicting if _named(diagnosis, s) else ABSENT,
                ]
                for s in snapshots
            ],
        )
    if (log := diagnosis.logged) is not None:
        rows = [
            [str(step), percent(agreeing), rounded(cosine)]
            for step, agreeing, cosine in zip(log.step, log.agreeing, log.cosine, strict=True)
            if agreeing is not None or cosine is not None
        ]
        if rows:
            columns = ["step", "components that agree", "mean cosine"]
            yield plain_table("Logged by the run itself", columns, rows)


class CurvePoint(NamedTuple):
    """One step: the means over the runs that were measured there."""

    step: int
    label: str
    within: MeanInterval
    across: MeanInterval


class SimilaritySummary(NamedTuple):
    """Means over the runs of a study; of each run, its mean over the measurements is taken.

    within, across: mean cosine within a domain, and across domains; difference: run by run.
    pairs: mean cosine by pairs of the study's domains; None for a pair never measured.
    higher: in how many of the `measurements` that have both `within` is above `across`.
    """

    within: MeanInterval
    across: MeanInterval
    difference: MeanInterval
    pairs: list[list[float | None]]
    higher: int
    measurements: int
    curve: list[CurvePoint]


def summarize_similarity(study: SimilarityStudy) -> SimilaritySummary:
    """The study's means with 95 % intervals over its runs; `DataError` if it compares nothing."""
    import pandas as pd

    rows = [(r, m.step, m.label, m.within, m.across) for r, m in _comparing(study)]
    if not rows:
        raise DataError(
            f"no measurement of {study.data} compares domains; measure fewer samples per domain"
        )
    frame = pd.DataFrame(rows, columns=["run", "step", "label", "within", "across"])
    of_run = frame.groupby("run")[["within", "across"]].mean()
    return SimilaritySummary(
        within=mean_interval(list(of_run["within"])),
        across=mean_interval(list(of_run["across"])),
        difference=mean_interval(list(of_run["within"] - of_run["across"])),
        pairs=[[_pair(study, d, e) for e in study.domains] for d in study.domains],
        higher=int((frame["within"] > frame["across"]).sum()),
        measurements=len(frame),
        curve=[
            CurvePoint(
                int(str(step)),
                str(here["label"].iloc[0]),
                *(mean_interval(list(here[name])) for name in ("within", "across")),
            )
            for step, here in frame.groupby("step")
        ],
    )


def similarity_section(study: SimilarityStudy) -> Section:
    """The study as a section of a report: its sentences, then its tables."""
    summary = summarize_similarity(study)
    intervals = {"within a domain": summary.within, "across domains": summary.across}
    intervals["within − across"] = summary.difference
    pairs = zip(study.domains, summary.pairs, strict=True)
    tables = [
        plain_table(
            "Mean cosine similarity of two samples' gradients",
            ["pairs", "mean", f"95 % interval over {counted(len(study.runs), 'run')}"],
            [[name, rounded(each.mean, 4), _between(each)] for name, each in intervals.items()],
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
                [str(at.step), at.label, rounded(at.within.mean, 4), rounded(at.across.mean, 4)]
                for at in summary.curve
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
    return str(frame.to_csv(index=False, lineterminator="\n", float_format="%.6f"))


def _comparing(study: SimilarityStudy) -> Iterator[tuple[int, Measurement]]:
    """The measurements with pairs within and across domains, each with the place of its run."""
    for place, run in enumerate(study.runs):
        yield from ((place, m) for m in run.measurements if None not in (m.within, m.across))


def _pair(study: SimilarityStudy, domain: str, other: str) -> float | None:
    """The mean cosine of a pair over the measurements that compare domains."""
    found = [
        value
        for _, m in _comparing(study)
        if {domain, other} <= set(m.domains)
        and (value := m.cosines[m.domains.index(domain)][m.domains.index(other)]) is not None
    ]
    return fmean(found) if found else None


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
    why = [f"{d} was left out {counted(n, 'time')}: {r}." for (d, r), n in Counter(skipped).items()]
    return sentences + first_of(why, "such cases, in similarity.json")
