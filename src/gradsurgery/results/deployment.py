"""Which method and settings to use on a new domain, from runs that left each known one out."""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from gradsurgery.documents.configuration import RunConfiguration, options_of
from gradsurgery.documents.deployment import (
    ClassRecall,
    CopiedTests,
    Deployment,
    DeploymentCandidate,
)
from gradsurgery.documents.record import Record
from gradsurgery.documents.selection import CriterionName
from gradsurgery.documents.tally import Tally
from gradsurgery.errors import DataError
from gradsurgery.results.classification import accuracy_of
from gradsurgery.results.intervals import proportion
from gradsurgery.results.runs import Inventory
from gradsurgery.results.selection import first_best


class Tried(NamedTuple):
    """A candidate and the records of its runs."""

    candidate: DeploymentCandidate
    records: list[Record]

    @property
    def configuration(self) -> RunConfiguration:
        """The options of one of its runs."""
        return self.records[0].configuration


def candidates_of(inventory: Inventory) -> list[Tried]:
    """The methods with their settings among the runs that leave out one domain, in plan order.

    Raises `DataError` where the runs are of several data sets.
    """
    order = {folder: float(i) for i, folder in enumerate(inventory.planned)}

    def place(file: Path) -> float:
        return order.get(file.parent.resolve(), math.inf)

    grouped: dict[str, list[Record]] = {}
    for file in sorted(inventory.records, key=place):
        record = inventory.records[file]
        if not record.configuration.without:
            options = _options(record.configuration)
            key = json.dumps([record.configuration.method, options], sort_keys=True)
            grouped.setdefault(key, []).append(record)
    records = [record for each in grouped.values() for record in each]
    images: dict[tuple[int, str], set[str]] = {}  # by what candidates may make of the same files
    for record in records:
        made = record.configuration.image_size, record.configuration.resize
        images.setdefault(made, set()).add(record.data.digest)
    if any(len(digests) > 1 for digests in images.values()):
        raise DataError("the runs are of different images; give the runs of one data set")
    seeds = sorted({record.configuration.seed for record in records})
    return [Tried(_candidate(each, seeds), each) for each in grouped.values()]


def choose(
    candidates: Sequence[DeploymentCandidate], criterion: CriterionName, domains: Sequence[str]
) -> int | None:
    """The position of the candidate with the highest score over the runs that leave out `domains`.

    Of equal ones the first; None where every candidate lacks a run.
    """
    whole = {place: each for place, each in enumerate(candidates) if not each.lacks}
    return first_best({place: each.score(criterion, domains) for place, each in whole.items()})


def without_looking(
    candidates: Sequence[DeploymentCandidate], criterion: CriterionName, domains: Sequence[str]
) -> dict[str, float]:
    """By domain, the accuracy on it of the candidate chosen by the runs that leave out the others.

    The choice has not seen the accuracy, which therefore is not too high for having been chosen.
    For one domain alone there are no other runs, and for one candidate there is no choice.
    """
    found = {}
    for domain in domains:
        others = [other for other in domains if other != domain] or [domain]
        chosen = choose(candidates, criterion, others)
        if chosen is not None:
            found[domain] = fmean(candidates[chosen].unseen[domain])
    return found


def classes_unseen(records: Sequence[Record]) -> list[ClassRecall]:
    """How the best models do on the classes of the domains that were left out, over all records.

    Empty where a record does not count its answers by class.
    """
    tests = [record.result.best.tests.get(record.configuration.target) for record in records]
    if not all(tests):
        return []
    confusion = Tally.merged([test for test in tests if test]).matrix()
    counts = zip(confusion.sum(axis=1), confusion.diagonal(), confusion.sum(axis=0), strict=True)
    return [
        ClassRecall(name=name, images=int(images), recognised=int(right), predicted=int(predicted))
        for name, (images, right, predicted) in zip(records[0].data.classes, counts, strict=True)
    ]


def copied_tests(records: Sequence[Record]) -> list[CopiedTests]:
    """For every domain left out with test images that were trained on, how many, in data order."""
    found: dict[str, CopiedTests] = {}
    for record in records:
        target = record.configuration.held_out(record.data.domains)
        counts = [c.of_target if c else 0 for c in (record.data.identical, record.data.alike)]
        if target is None or not any(counts):
            continue
        tests = record.split.sizes[target].test
        each = CopiedTests(domain=target, images=tests, identical=counts[0], alike=counts[1])
        most = found.setdefault(target, each)
        if (each.identical, each.alike) > (most.identical, most.alike):
            found[target] = each
    return [found[domain] for domain in records[0].data.domains if domain in found]


def tested_images(records: Sequence[Record]) -> dict[str, int]:
    """By domain, the most images that a run tested it on that left it out."""
    found: dict[str, int] = {}
    for record in records:
        target = record.configuration.target
        if target in record.split.sizes:
            found[target] = max(record.split.sizes[target].test, found.get(target, 0))
    return found


def unseen_groups(records: Sequence[Record]) -> dict[str, int]:
    """As `tested_images`, of groups; empty where images are in none."""
    found: dict[str, int] = {}
    for record in records:
        target = record.configuration.target
        tally = record.result.best.tests.get(target)
        if tally is not None and tally.in_groups:
            found[target] = max(len(tally.groups), found.get(target, 0))
    return found


def known_domains(records: Sequence[Record]) -> list[str]:
    """The domains that the initial weights of runs which left them out had been trained on."""
    pairs = ((record.configuration.target, record.model.weights_domains) for record in records)
    return sorted({target for target, known in pairs if target in known})


def unseen_low(records: Sequence[Record]) -> float | None:
    """Where images are in groups, where the interval of the accuracy on domains left out begins.

    A mean over the seeds, whose test images are in part the same.
    """
    by_seed: dict[int, list[Tally]] = {}
    for record in records:
        tally = record.result.best.tests.get(record.configuration.target)
        if tally is None:
            return None
        by_seed.setdefault(record.configuration.seed, []).append(tally)
    merged = [Tally.merged(tallies) for tallies in by_seed.values()]
    if not any(tally.in_groups for tally in merged):
        return None
    return fmean(accuracy_of(tally).low for tally in merged)


def low_end(deployment: Deployment) -> float:
    """Where the interval of the accuracy on domains left out begins; 0 where none was counted."""
    if deployment.unseen_low is not None:
        return deployment.unseen_low
    seeds = max(len(deployment.seeds), 1)  # whose test images are in part the same
    right = sum(each.recognised for each in deployment.classes_unseen) // seeds
    total = sum(each.images for each in deployment.classes_unseen) // seeds
    return proportion(right, total).low if total else 0.0


def _options(configuration: RunConfiguration) -> dict[str, object]:
    """What a candidate is beside its method."""
    apart = options_of("identity")
    return {name: value for name, value in configuration.departures().items() if name not in apart}


def _candidate(records: Sequence[Record], seeds: Sequence[int]) -> DeploymentCandidate:
    first = records[0].configuration
    of = {(r.configuration.target, r.configuration.seed): r.result.best for r in records}
    domains = records[0].data.domains
    runs = list(itertools.product(domains, seeds))
    unseen: dict[str, list[float]] = {domain: [] for domain in domains}
    validation: dict[str, list[float]] = {domain: [] for domain in domains}
    for domain, seed in runs:
        result = of.get((domain, seed))
        if result is not None and result.target_accuracy is not None:
            unseen[domain].append(result.target_accuracy)
            validation[domain].append(result.validation_accuracy)
    lacking = [f"{domain} seed {seed}" for domain, seed in runs if (domain, seed) not in of]
    return DeploymentCandidate(
        method=first.method,
        options=_options(first),
        unseen=unseen,
        validation=validation,
        lacks=", ".join(lacking),
    )
