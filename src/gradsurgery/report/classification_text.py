"""Figures of a classifier in tables: by domain, by class, and its confusion matrix."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gradsurgery.documents.deployment import EvaluationFile
from gradsurgery.documents.record import ModelResult, Record
from gradsurgery.documents.tally import Tally
from gradsurgery.report.section import (
    Block,
    Details,
    Listing,
    Section,
    Table,
    counted,
    listed,
    plain_table,
)
from gradsurgery.results.classification import INTERVALS, Assessment, Estimate, assess, proportion
from gradsurgery.results.frame import Records
from gradsurgery.results.tables import ComparisonTable

NONE = "–"
MOST_CLASSES = 20
"""Of a confusion matrix that is shown as a table."""


def evaluation_section(evaluation: EvaluationFile) -> Section:
    """An evaluation as a section of a report: its sentences, then its tables."""
    blocks: list[Block] = [
        Listing(evaluation_sentences(evaluation)),
        *evaluation_tables(evaluation),
    ]
    return Section("evaluation", f"The model on {evaluation.data}", blocks)


def evaluation_sentences(evaluation: EvaluationFile) -> list[str]:
    """What came out, what the model was trained on, and what to be wary of."""
    found = _assessed(evaluation)
    part = "" if evaluation.part == "all" else f" ({evaluation.part} images of its split)"
    whole = found[_ALL]
    sentences = [
        f"{evaluation.model} on {evaluation.data}{part}: {_percent(whole.accuracy)} of "
        f"{counted(whole.images, 'image')} right."
    ]
    if len(found) > 2:
        worst = min((name for name in found if name != _ALL), key=lambda d: found[d].accuracy.value)
        sentences.append(f"Worst domain: {worst}, {_percent(found[worst].accuracy)}.")
    sentences.append(_trained(evaluation))
    sentences += _seen(evaluation)
    for name, each in found.items():
        if each.never_predicted and (name != _ALL or len(found) == 1):
            where = "" if name == _ALL else f" on {name}"
            sentences.append(f"Never predicted{where}: {listed(each.never_predicted)}.")
    for name, domain in evaluation.domains.items():
        if domain.unknown:
            classes = [f"{label} ({count})" for label, count in domain.unknown.items()]
            sentences.append(
                f"Not counted, of classes that the model does not know, in {name}: "
                f"{counted(sum(domain.unknown.values()), 'image')}, {listed(classes)}."
            )
    if evaluation.skipped:
        first = evaluation.skipped[0]
        sentences.append(
            f"Left out: {counted(len(evaluation.skipped), 'image')} that cannot be decoded, the "
            f"first {first.identity}: {first.reason}."
        )
    return sentences


def evaluation_tables(evaluation: EvaluationFile) -> list[Table]:
    """By domain, by class, and the confusion matrix of all domains together."""
    found = _assessed(evaluation)
    shown = (
        found if len(found) > 2 else {name: each for name, each in found.items() if name != _ALL}
    )
    whole = found[_ALL]
    by_domain = [
        [
            name,
            f"{each.images:,}",
            *(_percent(e, unit="") for e in (each.accuracy, each.balanced_accuracy, each.macro_f1)),
        ]
        for name, each in shown.items()
    ]
    columns = ["domain", "images", "accuracy (%)", "balanced accuracy (%)", "macro F1 (%)"]
    confidence = [
        [
            name,
            _role(evaluation, name),
            _number(each.log_loss),
            _percent(each.calibration_error, unit=""),
        ]
        for name, each in shown.items()
    ]
    heads = ["domain", "trained on", "log loss", "calibration error (%)"]
    by_class = [
        [
            each.name,
            f"{each.images:,}",
            f"{each.predicted:,}",
            _percent(each.recall, unit=""),
            _percent(each.precision, unit=""),
            f"{100 * each.f1:.1f}",
        ]
        for each in whole.classes
    ]
    names = ["class", "images", "predicted", "recall (%)", "precision (%)", "F1 (%)"]
    tables = [
        plain_table("By domain", columns, by_domain),
        plain_table("Confidence, by domain", heads, confidence, notes=[INTERVALS]),
        plain_table("By class", names, by_class),
    ]
    if len(evaluation.classes) <= MOST_CLASSES:
        tables.append(confusion_table(whole_tally(evaluation), evaluation.classes))
    return tables


def confusion_table(tally: Tally, classes: Sequence[str]) -> Table:
    """Images by their class, a row each, and the class predicted."""
    rows = [
        [name, *(f"{count:,}" if count else NONE for count in row)]
        for name, row in zip(classes, tally.matrix().tolist(), strict=True)
    ]
    return plain_table("Images by class (rows) and prediction", ["class", *classes], rows)


def accuracy_text(accuracy: float, tally: Tally | None) -> str:
    """In %, with Wilson's interval of 95 % where the images were counted.

    >>> accuracy_text(0.9, Tally(confusion=["0:9 1:1", ""]))
    '90.0% [59.6, 98.2]'
    """
    if tally is None:
        return f"{accuracy:.1%}"
    matrix = tally.matrix()
    found = proportion(int(matrix.trace()), int(matrix.sum()))
    return f"{accuracy:.1%} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def recall_table(record: Record) -> Table | None:
    """A run's recall of each class, by domain, of the best and the last model; None without any."""
    domains = [d for d in record.data.domains if all(d in m.tests for m in _models(record))]
    if not domains:
        return None
    target, classes = record.configuration.held_out(record.data.domains), record.data.classes
    columns = [_mean_recalls([record], domain) for domain in domains]
    rows = [[name, *row] for name, *row in zip(classes, *columns, strict=True)]
    heads = [f"{domain} (held out)" if domain == target else domain for domain in domains]
    return plain_table("Recall (%) of each class, best / last model", ["class", *heads], rows)


def never_predicted(record: Record) -> list[str]:
    """The classes of the held-out domain that the best model never predicts there."""
    target = record.configuration.held_out(record.data.domains)
    tally = None if target is None else record.result.best.tests.get(target)
    if tally is None:
        return []
    matrix = tally.matrix()
    images, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    return [
        name
        for name, n, p in zip(record.data.classes, images, predicted, strict=True)
        if n and not p
    ]


def recalls_section(tables: Sequence[ComparisonTable], records: Records) -> Section:
    """The recall of each class on the held-out domains, for each table and method one of its own.

    Runs that no table compares are not in one here. Records of before tests were counted by class
    are left out.
    """
    groups: Groups = {}
    for place, table in enumerate(tables):
        for method, file in zip(table.frame["method"], table.frame["record"], strict=True):
            record = records[Path(file)]
            target = record.configuration.held_out(record.data.domains)
            if target is not None and all(target in m.tests for m in _models(record)):
                about = f"{table.name}, {method}"
                of_method = groups.setdefault((place, about, tuple(record.data.classes)), {})
                of_method.setdefault(target, []).append(record)
    blocks: list[Block] = [Listing(sentences)] if (sentences := _never(groups)) else []
    for (_, about, classes), by_target in groups.items():
        columns = [_mean_recalls(runs, target) for target, runs in by_target.items()]
        rows = [[name, *row] for name, *row in zip(classes, *columns, strict=True)]
        caption = f"{about}: recall (%) of each class on each held-out domain"
        notes = ["Of the best / the last model, the mean over the runs."]
        table_of_it = plain_table(caption, ["class", *by_target], rows, notes=notes)
        many = len(rows) > MOST_CLASSES
        blocks.append(Details(caption, [table_of_it]) if many else table_of_it)
    return Section("classes", "Classes", blocks)


Groups = dict[tuple[int, str, tuple[str, ...]], dict[str, list[Record]]]
"""Records by target, of each table's place, name with the method, and classes."""


def _never(groups: Groups) -> list[str]:
    """A sentence for every table, method and domain with classes that runs never predict."""
    sentences = []
    for (_, about, _), by_target in groups.items():
        for target, runs in by_target.items():
            missed = Counter(name for record in runs for name in never_predicted(record))
            if missed:
                named = [
                    f"{name} (in {n} of {counted(len(runs), 'run')})" for name, n in missed.items()
                ]
                sentences.append(f"{about}: never predicted on {target}: {listed(named)}.")
    return sentences


def _mean_recalls(runs: Sequence[Record], target: str) -> list[str]:
    """For each class "best / last", in per cent; a dash where the domain has no image of it."""
    means = []
    for position in range(2):
        matrices = [_models(run)[position].tests[target].matrix() for run in runs]
        images = np.array([matrix.sum(axis=1) for matrix in matrices])
        right = np.array([matrix.diagonal() for matrix in matrices])
        fractions = np.where(images > 0, right / np.maximum(images, 1), np.nan)
        there = np.maximum((images > 0).sum(axis=0), 1)
        means.append(
            np.where((images > 0).any(axis=0), np.nansum(fractions, axis=0) / there, np.nan)
        )
    return [
        NONE if np.isnan(best) else f"{100 * best:.1f} / {100 * last:.1f}"
        for best, last in zip(*means, strict=True)
    ]


def _models(record: Record) -> tuple[ModelResult, ModelResult]:
    return record.result.best, record.result.last


def whole_tally(evaluation: EvaluationFile) -> Tally:
    """All domains together."""
    return Tally.merged([domain.tally for domain in evaluation.domains.values()])


_ALL = "all domains"


def _assessed(evaluation: EvaluationFile) -> Mapping[str, Assessment]:
    """The figures of every domain with images, and of all."""
    tallies = {name: domain.tally for name, domain in evaluation.domains.items()}
    tallies[_ALL] = whole_tally(evaluation)
    return {
        name: assess(tally, evaluation.classes) for name, tally in tallies.items() if tally.images
    }


def _trained(evaluation: EvaluationFile) -> str:
    if evaluation.trained_on is None:
        return f"The model file does not say which domains of {evaluation.trained_data} it is from."
    held_out = "" if evaluation.target is None else f"; {evaluation.target} was held out"
    return (
        f"It was trained on {listed(evaluation.trained_on)} of {evaluation.trained_data}{held_out}."
    )


def _seen(evaluation: EvaluationFile) -> list[str]:
    """Of the images that are no new ones to the model."""
    counts = [domain.seen for domain in evaluation.domains.values()]
    if None not in counts:
        seen = sum(count or 0 for count in counts)
        trained = f"{counted(seen, 'image')} of these {'was' if seen == 1 else 'were'} trained on"
        return [f"{trained}: their accuracy says nothing of new images."] if seen else []
    shared = [d for d in evaluation.domains if _role(evaluation, d) == "yes"]
    if not shared:
        return []
    return [
        f"Of {listed(shared)} most images may have been trained on: their accuracy says nothing of "
        "new images. The run's folder with its split.json tells which (--part test)."
    ]


def _role(evaluation: EvaluationFile, domain: str) -> str:
    """Whether a domain was trained on; of another data set's nothing is known but their names."""
    if evaluation.trained_on is None or evaluation.data != evaluation.trained_data:
        return NONE
    if domain == _ALL:
        return NONE
    return "yes" if domain in evaluation.trained_on else "no"


def _percent(estimate: Estimate | None, unit: str = " %") -> str:
    if estimate is None:
        return NONE
    value, low, high = (100 * x for x in (estimate.value, estimate.low, estimate.high))
    return f"{value:.1f}{unit} [{low:.1f}, {high:.1f}]"


def _number(estimate: Estimate | None) -> str:
    if estimate is None:
        return NONE
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
