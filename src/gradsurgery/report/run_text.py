"""What is said of runs: their options, results and curves, their classes, and their data."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import starmap
from math import isnan
from pathlib import Path

from gradsurgery.documents.data_options import left_out_classes
from gradsurgery.documents.record import Copies, DataRecord, ModelResult, Record
from gradsurgery.documents.tally import Tally, shown_order
from gradsurgery.report.evaluation_text import chance_sentences, known_targets
from gradsurgery.report.section import (
    ABSENT,
    MOST_SENTENCES,
    Block,
    Details,
    Listing,
    Section,
    Table,
    Text,
    counted,
    first_of,
    listed,
    plain_table,
    rounded,
    value_text,
)
from gradsurgery.results.classification import accuracy_of
from gradsurgery.results.runs import Records
from gradsurgery.results.tables import ComparisonTable

MOST_CLASSES = 20
"""Of a table of classes that is not folded away."""
MOST_DOMAINS = 20
"""Of a table of a run's domains, or of classes by domain."""
_UNEVEN = 3.0
"""From how many times as many images on the largest class or domain is worth a word."""
_BLOCKS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 24


def run_blocks(record: Record) -> list[Text | Table]:
    """One run in detail: its options, results, curves and cost."""
    options = [[name.replace("_", " "), value_text(each)] for name, each in record.configuration]
    about = plain_table("", [], [row for row in options if row[1] != ABSENT])
    cost = record.cost
    parts = [
        f"{cost.seconds:.1f} s",
        f"{cost.seconds_per_step * 1000:.1f} ms a step",
        f"{cost.peak_memory_bytes / 2**20:.0f} MiB peak memory",
        str(record.environment.get("device") or ""),
    ]
    blocks = filter(None, [about, _results(record), recall_table(record), _curves(record)])
    texts = [f"cost: {', '.join(filter(None, parts))}"]
    texts += [*known_targets([record]), *chance_sentences(record)]
    if missed := never_predicted(record):
        texts.append(f"never predicted on {record.configuration.target}: {listed(missed)}")
    if record.data.skipped:
        texts.append(f"images left out, not decoded: {len(record.data.skipped)}")
    texts += recorded_sentences([record])
    return [*blocks, *map(Text, texts)]


def sparkline(values: Sequence[float | int | None]) -> str:
    """The curve as a line of blocks from its lowest to its highest value, a gap where None."""
    step = max(1, -(-len(values) // _SPARK_WIDTH))
    shown = values[::-step][::-1]  # the last point is always there
    finite = [value for value in shown if value is not None]
    if not finite:
        return " " * len(shown)
    low, span = min(finite), max(finite) - min(finite)
    top = len(_BLOCKS) - 1
    return "".join(
        " " if value is None else _BLOCKS[round((value - low) / span * top) if span else 0]
        for value in shown
    )


def _results(record: Record) -> Table:
    target, both = record.configuration.target, _models(record)
    rows = [
        ["step", *map(_steps, both)],
        ["validation", *(f"{model.validation_accuracy:.1%}" for model in both)],
    ]
    on_target = [(a, m.tests.get(target)) for m in both if (a := m.target_accuracy) is not None]
    if len(on_target) == len(both):
        rows.append([f"target {target}", *starmap(accuracy_text, on_target)])
    sources = [domain for domain in record.data.domains if domain != target]
    sources = [domain for domain in sources if all(domain in m.test_accuracy for m in both)]
    notes = []
    if len(sources) > MOST_DOMAINS:
        lowest = sorted(sources, key=lambda domain: both[0].test_accuracy[domain])[:MOST_SENTENCES]
        those = f"the {len(lowest)} with the lowest accuracies; record.json has all"
        notes = [f"Of the {len(sources)} source domains {those}."]
        sources = lowest
    for domain in sources:
        texts = [accuracy_text(m.test_accuracy[domain], m.tests.get(domain)) for m in both]
        rows.append([f"test {domain}", *texts])
    return plain_table("", ["accuracy of the model", "best", "last"], rows, notes=notes)


def _steps(model: ModelResult) -> str:
    """The step of a model, or the first and the last of those it is the average of."""
    return str(model.step) if model.averaged_from is None else f"{model.averaged_from}–{model.step}"


def _curves(record: Record) -> Table:
    curves: dict[str, Sequence[float | None]] = {
        "train loss": record.curves.train_loss,
        "validation accuracy": record.curves.validation_accuracy,
    }
    rows = [
        [name, rounded(values[0], 3), rounded(values[-1], 3), sparkline(values)]
        for name, values in curves.items()
        if values
    ]
    return plain_table("", ["curve", "first", "last", "over the steps"], rows)


def accuracy_text(accuracy: float, tally: Tally | None) -> str:
    """In %, with the interval of 95 % where the images were counted, and how many groups they are.

    >>> accuracy_text(0.9, Tally(confusion=["0:9 1:1", ""]))
    '90.0% [59.6, 98.2]'
    """
    if tally is None:
        return f"{accuracy:.1%}"
    found = accuracy_of(tally)
    groups = f" of {counted(len(tally.groups), 'group')}" if tally.in_groups else ""
    return f"{accuracy:.1%} [{100 * found.low:.1f}, {100 * found.high:.1f}]{groups}"


def recall_table(record: Record) -> Table | None:
    """A run's recall of each class, by domain, of the best and the last model; None without any.

    Of many domains that of the one held out, if any.
    """
    target = record.configuration.held_out(record.data.domains)
    tested = [d for d in record.data.domains if all(d in m.tests for m in _models(record))]
    notes = []
    if len(tested) > MOST_DOMAINS:
        notes = [f"Those in all {len(tested)} domains are in record.json."]
        tested = [d for d in tested if d == target]
    if not tested:
        return None
    heads = [f"{domain} (held out)" if domain == target else domain for domain in tested]
    rows = _recall_rows(record.data.classes, {domain: [record] for domain in tested})
    caption = "Recall (%) of each class, best / last model"
    return plain_table(caption, ["class", *heads], rows, notes=notes)


def never_predicted(record: Record) -> list[str]:
    """The classes of the held-out domain that the best model never predicts there."""
    target = record.configuration.held_out(record.data.domains)
    tally = None if target is None else record.result.best.tests.get(target)
    if tally is None:
        return []
    matrix = tally.matrix()
    never = (matrix.sum(axis=1) > 0) & (matrix.sum(axis=0) == 0)
    return [name for name, missed in zip(record.data.classes, never, strict=True) if missed]


def recalls_section(tables: Sequence[ComparisonTable], records: Records) -> Section:
    """The recall of each class on the held-out domains, for each table and method one of its own.

    Runs that no table compares are not in one here. Records of before tests were counted by class
    are left out.
    """
    sentences: list[str] = []
    blocks: list[Block] = []
    methods = [(table, method) for table in tables for method in table.methods]
    for table, method in methods:
        by_target: dict[str, list[Record]] = {target: [] for target in table.targets}
        for file in table.frame.loc[table.frame["method"] == method, "record"]:
            record = records[Path(file)]
            target = record.configuration.held_out(record.data.domains)
            if target is not None and all(target in m.tests for m in _models(record)):
                by_target[target].append(record)
        by_target = {target: runs for target, runs in by_target.items() if runs}
        if not by_target:
            continue
        about = f"{table.name}, {method}"
        for target, runs in by_target.items():
            missed = Counter(name for record in runs for name in never_predicted(record))
            of = counted(len(runs), "run")
            if named := [f"{name} (in {n} of {of})" for name, n in missed.items()]:
                sentences.append(f"{about}: never predicted on {target}: {listed(named)}.")
        caption = f"{about}: recall (%) of each class on each held-out domain"
        notes = ["Of the best / the last model, the mean over the runs."]
        rows = _recall_rows(record.data.classes, by_target)
        recalls = plain_table(caption, ["class", *by_target], rows, notes=notes)
        blocks.append(Details(caption, [recalls]) if len(rows) > MOST_CLASSES else recalls)
    return Section("classes", "Classes", [*([Listing(sentences)] if sentences else []), *blocks])


def _recall_rows(
    classes: Sequence[str], runs_of: Mapping[str, Sequence[Record]]
) -> list[list[str]]:
    """A row a class: for each domain "best / last", the means over its runs in per cent.

    A dash where the domain has no image of the class.
    """
    import pandas as pd

    columns = []
    for domain, runs in runs_of.items():
        means = []
        for models in zip(*map(_models, runs), strict=True):
            matrices = [model.tests[domain].matrix() for model in models]
            recalls = [pd.Series(m.diagonal()) / m.sum(axis=1) for m in matrices]  # 0 / 0 is NaN
            means.append(pd.concat(recalls, axis=1).mean(axis=1))
        columns.append(
            [
                ABSENT if isnan(best) else f"{100 * best:.1f} / {100 * last:.1f}"
                for best, last in zip(*means, strict=True)
            ]
        )
    rows = [[name, *row] for name, *row in zip(classes, *columns, strict=True)]
    return [rows[k] for k in shown_order(classes)]


def _models(record: Record) -> tuple[ModelResult, ModelResult]:
    return record.result.best, record.result.last


def gap_sentences(counts: Mapping[str, Sequence[int]], classes: Sequence[str]) -> list[str]:
    """Which classes a domain lacks, one sentence a domain; of many, the first.

    counts: of each class, by domain.

    >>> gap_sentences({"a": [3, 0], "b": [2, 5]}, ["cat", "dog"])
    ['Domain a has no image of dog.']
    """
    sentences = []
    for domain, numbers in counts.items():
        lacking = [name for name, n in zip(classes, numbers, strict=True) if n == 0]
        if len(lacking) == len(classes):
            sentences.append(f"Domain {domain} has no images.")
        elif lacking:
            more = f" and {len(lacking) - 10} more classes" if len(lacking) > 10 else ""
            sentences.append(f"Domain {domain} has no image of {', '.join(lacking[:10])}{more}.")
    return first_of(sentences, "domains lack classes")


def imbalance_sentences(counts: Mapping[str, Sequence[int]], classes: Sequence[str]) -> list[str]:
    """How uneven domains and classes are, where they are.

    >>> imbalance_sentences({"a": [30, 10], "b": [80, 10]}, ["cat", "dog"])
    ['The classes are uneven: cat has 110 images, dog 20, 5.5 times fewer.']
    """
    of_domains = {domain: sum(numbers) for domain, numbers in counts.items()}
    of_classes = dict(zip(classes, map(sum, zip(*counts.values(), strict=True)), strict=True))
    sentences = []
    for what, numbers in (("domains", of_domains), ("classes", of_classes)):
        there = {name: n for name, n in numbers.items() if n > 0}
        if not there:
            continue
        most, least = max(there, key=there.__getitem__), min(there, key=there.__getitem__)
        if (ratio := there[most] / there[least]) >= _UNEVEN:
            sentences.append(
                f"The {what} are uneven: {most} has {there[most]:,} images, {least} "
                f"{there[least]:,}, {ratio:.1f} times fewer."
            )
    return sentences


def left_out_sentences(data: DataRecord) -> list[str]:
    """Which classes were left out as some domain lacks them, in a sentence, if any."""
    found = left_out_classes((each.identity, each.reason) for each in data.left_out)
    if not found:
        return []
    classes = listed(f"{label} ({why})" for label, why in found.items())
    return [f"Classes left out, for not every domain has them: {classes}."]


def copies_sentences(copies: Copies, *, alike_at: int = 0, target: str = "") -> list[str]:
    """What pictures that occur more than once mean; empty where there are none.

    alike_at: they are not the same file, and look alike at so many pixels a side: the fewer, the
        more do. target: the domain that a run held out.
    """
    if not copies.images:
        return []
    what, like = "is one of several identical files", "identical to images trained on"
    parts = "Pictures that are trained on, and validated or tested on too"
    classes = "Pictures with more than one class, of which one at least is wrong"
    if alike_at:
        what = f"looks like another image, at {alike_at}x{alike_at} pixels"
        like = "like images that were trained on"
        parts = "Groups of look-alikes, some trained on and others validated or tested on"
        classes = "Groups of look-alikes with more than one class"
    sentences = [f"{counted(copies.images, 'image', what)}."]
    if copies.of_target:
        sentences.append(
            f"Test images of the target {target} {like}: {copies.of_target:,}; on them the "
            "accuracy says nothing of a domain that was never seen."
        )
    pairs = list(copies.across_domains.items())
    if len(pairs) > MOST_SENTENCES + 1:
        pairs.sort(key=lambda pair: -pair[1])
    across = [
        f"Groups of look-alikes in the domains {domains}: {count:,}."
        if alike_at
        else f"The domains {domains} share {counted(count, 'picture')}."
        for domains, count in pairs
    ]
    sentences += first_of(across, "pairs of domains have such pictures in common")
    for groups, count in ((parts, copies.across_parts), (classes, copies.across_classes)):
        sentences += [f"{groups}: {count:,}."] if count else []
    sentences += [f"For example {' and '.join(names)}." for names in copies.examples[:3]]
    return sentences


def recorded_sentences(records: Sequence[Record]) -> list[str]:
    """What is to be said of the data of some runs, each sentence once.

    Of runs with a split for each seed, in which other copies lie apart, those of the first seed.
    """
    sentences: dict[str, None] = {}
    first: dict[tuple[str, str, str], int] = {}
    for record in records:
        data, target, seed = record.data, record.configuration.target, record.configuration.seed
        about = f"{data.name}, {target} held out"
        if record.configuration.split_per_run:
            about += f", the split of seed {seed}"
            if first.setdefault((data.name, data.digest, target), seed) != seed:
                continue
        found = [*data.doubts, *left_out_sentences(data)]
        found += gap_sentences(data.class_images, data.classes)
        if data.class_images:
            found += imbalance_sentences(data.class_images, data.classes)
        for copies, side in ((data.identical, 0), (data.alike, record.configuration.image_size)):
            if copies is not None:
                found += copies_sentences(copies, alike_at=side, target=target)
        if record.split.unused:
            unused = counted(record.split.unused, "image", "is in no part of the split")
            found.append(f"{unused}.")
        sentences.update(dict.fromkeys(f"{about}: {sentence}" for sentence in found))
    return list(sentences)
