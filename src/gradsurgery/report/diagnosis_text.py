"""A diagnosis in words and tables."""

from collections.abc import Iterator

from gradsurgery.documents.studies import Diagnosis, GroupConflict, Snapshot
from gradsurgery.report.section import Listing, Section, Table, plain_table

NONE = "–"
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
    batch = diagnosis.options.batch_size
    repeats = diagnosis.options.repeats
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
    chance = _percent(0.5 ** (count - 1))
    text = (
        f"The {count} domains agree in {_percent(agreeing)} of the components; signs by chance "
        f"would agree in {chance}"
    )
    if last.shuffled_agreeing is None:
        return f"{text}."
    shuffled = last.shuffled_agreeing
    if shuffled - agreeing < 0.01:
        verdict = "so it is the size of the batches that shows here, not the domains"
    elif shuffled > 0.99:
        verdict = "so all the disagreement is the domains' doing"
    else:
        verdict = (
            f"so {100 * (shuffled - agreeing):.0f} points of the disagreement are the domains' "
            "doing, and the rest comes from small batches"
        )
    return (
        f"{text}, and the same images dealt out to the domains at random agree in "
        f"{_percent(shuffled)}, {verdict}."
    )


def _worst(diagnosis: Diagnosis, last: Snapshot) -> str:
    domains = diagnosis.domains
    if last.total.agreeing == 1:
        return ""
    if len(domains) == 2:
        fraction = _percent(last.total.against_rest[0])
        return (
            f"{domains[0]} and {domains[1]} disagree in {fraction} of the components; the cosine "
            f"of their gradients is {_cosine(last.total.cosines[0][1])}{_where(last.groups, 0)}."
        )
    place = domains.index(last.most_conflicting)
    cosine = _cosine(last.total.cosine_with_rest[place])
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
    found = [
        (cosine, place)
        for place, group in enumerate(groups)
        if (cosine := group.cosine_with_rest[domain]) is not None
    ]
    large = [(c, place) for c, place in found if groups[place].components >= _FEWEST]
    found = large if len(large) > 1 else found
    if len(found) < 2 or len({_cosine(cosine) for cosine, _ in found}) == 1:
        return ""
    cosine, place = min(found)
    position = (
        "the last layer"
        if place == len(groups) - 1
        else "the first layer"
        if place == 0
        else f"part {place + 1} of {len(groups)}"
    )
    return f", and lowest in {groups[place].name} ({position}: {_cosine(cosine)})"


def _left(last: Snapshot) -> str:
    agreeing, length = last.total.agreeing or 0.0, last.total.kept_length
    if agreeing == 0:
        return "Agr-Sum leaves nothing of the update."
    if length is None:
        return (
            f"Agr-Sum leaves {_percent(agreeing)} of the update's components; the sum of the "
            "gradients has no length to compare with."
        )
    return (
        f"Agr-Sum leaves {_percent(agreeing)} of the update's components and {_percent(length)} of "
        "its length."
    )


def _course(diagnosis: Diagnosis) -> list[str]:
    first, last = diagnosis.snapshots[0], diagnosis.snapshots[-1]
    sentences = []
    if len(diagnosis.snapshots) > 1:
        sentences.append(
            f"Over training the agreement went from {_percent(first.total.agreeing)} at step "
            f"{first.step} to {_percent(last.total.agreeing)} at step {last.step}."
        )
    logged = diagnosis.logged
    agreeing = [] if logged is None else [v for v in logged.agreeing if v is not None]
    if len(agreeing) > 1:
        sentences.append(
            f"The run itself saw {_percent(agreeing[0])} agree at first and "
            f"{_percent(agreeing[-1])} at the end."
        )
    return sentences


def _tables(diagnosis: Diagnosis) -> Iterator[Table]:
    domains, snapshots = diagnosis.domains, diagnosis.snapshots
    last = snapshots[-1]
    total = last.total
    of_domains = zip(
        domains, total.cosines, total.cosine_with_rest, total.against_rest, strict=True
    )
    yield plain_table(
        "Cosine similarity of the domains' gradients",
        ["domain", *domains, "all others", "components against all others"],
        [
            [domain, *map(_cosine, row), _cosine(rest), _percent(against)]
            for domain, row, rest, against in of_domains
        ],
    )
    columns = ["layers", "components", "agree", "length that Agr-Sum leaves"]
    fractions = [(g.agreeing, g.kept_length, *g.against_rest) for g in (*last.groups, total)]
    yield plain_table(
        "By layers, from the input to the output",
        [*columns, *(f"{domain} against the rest" for domain in domains)],
        [
            [group.name, f"{group.components:,}", *map(_percent, of_group)]
            for group, of_group in zip((*last.groups, total), fractions, strict=True)
        ],
    )
    if len(snapshots) > 1:
        yield plain_table(
            "Over training",
            ["step", "agree", "agree when shuffled", "length left", "conflicts most"],
            [
                [
                    str(s.step),
                    *map(_percent, (s.total.agreeing, s.shuffled_agreeing, s.total.kept_length)),
                    s.most_conflicting if _named(diagnosis, s) else NONE,
                ]
                for s in snapshots
            ],
        )
    if (log := diagnosis.logged) is not None:
        rows = [
            [str(step), _percent(agreeing), _cosine(cosine)]
            for step, agreeing, cosine in zip(log.step, log.agreeing, log.cosine, strict=True)
            if agreeing is not None or cosine is not None
        ]
        if rows:
            columns = ["step", "components that agree", "mean cosine"]
            yield plain_table("Logged by the run itself", columns, rows)


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.0f} %"


def _cosine(value: float | None) -> str:
    return NONE if value is None else f"{value:z.2f}"
