"""What is said of a model on images: how often it is right, and what its answers rest on."""

from collections.abc import Iterable, Sequence
from functools import partial

from gradsurgery.documents.deployment import EvaluationFile
from gradsurgery.documents.record import Record
from gradsurgery.documents.studies import Explanation
from gradsurgery.documents.tally import Tally
from gradsurgery.report.section import (
    ABSENT,
    Listing,
    Section,
    Table,
    counted,
    first_of,
    listed,
    percent_text,
    plain_table,
    points_text,
    with_interval,
)
from gradsurgery.results.classification import (
    INTERVALS,
    INTERVALS_OF_GROUPS,
    INTERVALS_OF_PAIRS,
    Assessment,
    PairedFigures,
    accuracy_of,
    as_good_as_one_class,
    assess,
    compare_answers,
)

MOST_CLASSES = 20
"""Of a confusion matrix that is shown as a table."""
_ALL = "all domains"
_CONFIDENCE = ["domain", "trained on", "log loss", "calibration error (%)"]


def evaluation_section(evaluation: EvaluationFile) -> Section:
    """An evaluation as a section of a report: its sentences, then its tables."""
    sentences = Listing([*against_sentences(evaluation), *evaluation_sentences(evaluation)])
    title = f"The model on {evaluation.data}"
    return Section("evaluation", title, [sentences, *evaluation_tables(evaluation)])


def evaluation_sentences(evaluation: EvaluationFile) -> list[str]:
    """What came out, what the model was trained on, and what to be wary of."""
    found = _assessed(evaluation)
    part = "" if evaluation.part == "all" else f" ({evaluation.part} images of its split)"
    right = percent_text(found[_ALL].accuracy)
    images = counted(found[_ALL].images, "image")
    sentences = [
        f"{evaluation.model} on {evaluation.data}{part}: {right} of {images} right.",
        *no_better_sentences(evaluation.tally),
        *group_sentences(evaluation.tally),
    ]
    domains = {name: each for name, each in found.items() if name != _ALL}
    if len(domains) > 1:
        worst = min(domains, key=lambda name: domains[name].accuracy.value)
        sentences.append(f"Worst domain: {worst}, {percent_text(domains[worst].accuracy)}.")
    sentences += [_trained(evaluation, "It"), *_seen(evaluation)]
    never = [
        f"Never predicted on {name}: {listed(each.never_predicted)}."
        for name, each in domains.items()
        if each.never_predicted
    ]
    unknown = [
        f"Not counted, of classes that the model does not know, in {name}: "
        f"{counted(sum(of.values()), 'image')}, {listed(f'{k} ({n})' for k, n in of.items())}."
        for name, domain in evaluation.domains.items()
        if (of := domain.unknown)
    ]
    sentences += first_of(never, "domains have classes that are never predicted there")
    sentences += first_of(unknown, "domains have images of unknown classes")
    if skipped := evaluation.skipped:
        images = f"{counted(len(skipped), 'image')} that cannot be decoded"
        first = f"{skipped[0].identity}: {skipped[0].reason}"
        sentences.append(f"Left out: {images}, the first {first}.")
    return sentences


def against_sentences(evaluation: EvaluationFile) -> list[str]:
    """Which of two models is better on the same images, where, and what to be wary of."""
    if (other := evaluation.against) is None:
        return []
    found = _compared(evaluation)
    images, compared = evaluation.tally.images, found[_ALL].images if found else 0
    group = ", or on others of their group" if evaluation.tally.in_groups else ""
    why = f"{counted(images - compared, 'image')} that one of the two was trained on{group}"
    if not found:
        none = f"Not compared with {other.model}, for want of images that are new to both"
        sentences = [f"{none}: give others than these {why}."]
    else:
        sentences = [_verdict(found[_ALL], evaluation.model, other.model)]
        where: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": []}
        for name, each in found.items():
            where[each.verdict] += [name] if name != _ALL else []
        if len(found) > 2:
            said = [f"{verdict} on {listed(on)}" for verdict, on in where.items() if on]
            sentences.append(f"By domain: {'; '.join(said)}.")
    if 0 < compared < images:
        sentences.append(f"Left out of the comparison: {why}.")
    for one in (evaluation, other):
        if None in [domain.seen for domain in one.domains.values()]:
            sentences.append(
                f"Whether {one.model} was trained on some of these images is not known, for no "
                "split.json of its run is at hand: if it was, that favours it."
            )
    return [*sentences, _trained(other, other.model)]


def _verdict(found: PairedFigures, model: str, other: str) -> str:
    said = f"{model} is {found.verdict} than {other}"
    if found.verdict == "not told apart":
        said = f"{model} and {other} are not told apart"
    return (
        f"{said}: {100 * found.accuracy:.1f} % against {100 * found.other:.1f} % of "
        f"{counted(found.images, 'image')} right, {points_text(found.difference)}; "
        f"{found.only_this:,} only the first has right, {found.only_other:,} only the second."
    )


def group_sentences(tally: Tally) -> list[str]:
    """That images belong together, where they do, and what that means for the intervals."""
    if not tally.in_groups:
        return []
    if len(tally.groups) == 1:
        return ["All images are of one group: what they say of others is not known."]
    return [
        f"The images are of {len(tally.groups):,} groups, and those of a group are not "
        "independent: the intervals are as wide as so many groups make them."
    ]


def no_better_sentences(tally: Tally | None, where: str = "") -> list[str]:
    """That to name one class for every image would be as good, where it would."""
    if tally is None:
        return []
    of_classes = tally.matrix().sum(axis=1).tolist()
    share = as_good_as_one_class(accuracy_of(tally).low, of_classes) if sum(of_classes) else None
    text = f"No better{where} than to name the most frequent class for every image"
    images = counted(tally.images, "image")
    if tally.in_groups:
        images += f" of {counted(len(tally.groups), 'group')}"
    return [] if share is None else [f"{text} ({share:.1%} right), as far as {images} can tell."]


def chance_sentences(record: Record) -> list[str]:
    """The same of a run's best model on the domain held out, or on those trained on."""
    tests, target = record.result.best.tests, record.configuration.held_out(record.data.domains)
    if target is not None:
        return no_better_sentences(tests.get(target), f" on {target}")
    return no_better_sentences(Tally.merged([*tests.values()]) if tests else None)


def known_targets(records: Iterable[Record]) -> list[str]:
    """A sentence for every target that the initial weights of runs had been trained on."""
    sentences = [
        known_sentence(record.data.name, record.configuration.target)
        for record in records
        if record.configuration.target in record.model.weights_domains
    ]
    return list(dict.fromkeys(sentences))


def known_sentence(data: str, target: str) -> str:
    """That the accuracy on a domain that was held out is none on an unseen one."""
    return (
        f"ATTENTION: runs with {target} of {data} held out began with weights that had "
        "been trained on it, so that the accuracy says nothing of a domain that was never seen."
    )


def evaluation_tables(evaluation: EvaluationFile) -> list[Table]:
    """By domain, by class, and the confusion matrix of all domains together."""
    found = _assessed(evaluation)
    whole = found[_ALL]
    if len(found) == 2:  # one domain, which is all
        del found[_ALL]
    columns = ["domain", "images", "accuracy (%)", "balanced accuracy (%)", "macro F1 (%)"]
    in_groups, fraction = evaluation.tally.in_groups, partial(percent_text, unit="")
    by_domain, confidence = [], []
    for name, each in found.items():
        figures = map(fraction, (each.accuracy, each.balanced_accuracy, each.macro_f1))
        by_domain.append([name, f"{each.images:,}", *figures])
        trust = with_interval(each.log_loss), fraction(each.calibration_error)
        confidence.append([name, _role(evaluation, name), *trust])
    if in_groups:
        groups = {name: f"{len(tally.groups):,}" for name, tally in _tallies(evaluation).items()}
        columns.insert(2, "groups")
        for row in by_domain:
            row.insert(2, groups[row[0]])
    intervals = INTERVALS_OF_GROUPS if in_groups else INTERVALS
    names = ["class", "images", "predicted", "recall (%)", "precision (%)", "F1 (%)"]
    by_class = [
        [
            each.name,
            f"{each.images:,}",
            f"{each.predicted:,}",
            fraction(each.recall),
            fraction(each.precision),
            f"{100 * each.f1:.1f}",
        ]
        for each in whole.classes
    ]
    tables = [
        plain_table("By domain", columns, by_domain),
        plain_table("Confidence, by domain", _CONFIDENCE, confidence, notes=[intervals]),
        plain_table("By class", names, by_class),
    ]
    if len(evaluation.classes) <= MOST_CLASSES:
        tables.append(confusion_table(evaluation.tally, evaluation.classes))
    if evaluation.against is not None and (pairs := _compared(evaluation)):
        tables.insert(0, _against_table(pairs, evaluation.against.model))
    return tables


def _against_table(found: dict[str, PairedFigures], other: str) -> Table:
    columns = ["domain", "images", "accuracy (%)", "other (%)", "difference (points)"]
    columns += ["right alone", "it is"]
    rows = [
        [
            name,
            f"{each.images:,}",
            *(f"{100 * fraction:.1f}" for fraction in (each.accuracy, each.other)),
            points_text(each.difference, unit=""),
            f"{each.only_this:,} / {each.only_other:,}",
            ABSENT if each.verdict == "not told apart" else each.verdict,
        ]
        for name, each in found.items()
        if name != _ALL or len(found) > 2
    ]
    return plain_table(f"Against {other}, by domain", columns, rows, notes=[INTERVALS_OF_PAIRS])


def confusion_table(tally: Tally, classes: Sequence[str]) -> Table:
    """Images by their class, a row each, and the class predicted."""
    names, matrix = tally.shown(classes)
    rows = [
        [name, *(f"{count:,}" if count else ABSENT for count in row)]
        for name, row in zip(names, matrix.tolist(), strict=True)
    ]
    return plain_table("Images by class (rows) and prediction", ["class", *names], rows)


def _assessed(evaluation: EvaluationFile) -> dict[str, Assessment]:
    """The figures of every domain with images, and of all."""
    tallies = _tallies(evaluation)
    return {name: assess(each, evaluation.classes) for name, each in tallies.items() if each.images}


def _compared(evaluation: EvaluationFile) -> dict[str, PairedFigures]:
    """Two models on every domain with images that are new to both, and on all of those."""
    tallies = {name: domain.paired for name, domain in evaluation.domains.items()}
    tallies |= {_ALL: evaluation.paired}
    return {name: compare_answers(each) for name, each in tallies.items() if each and each.images}


def _tallies(evaluation: EvaluationFile) -> dict[str, Tally]:
    tallies = {name: domain.tally for name, domain in evaluation.domains.items()}
    return tallies | {_ALL: evaluation.tally}


def _trained(evaluation: EvaluationFile, model: str) -> str:
    if evaluation.trained_on is None:
        return f"The model file does not say which domains of {evaluation.trained_data} it is from."
    held_out = "" if evaluation.target is None else f"; {evaluation.target} was held out"
    before = evaluation.trained_before
    also = f" Its initial weights had been trained on {listed(before)} of it." if before else ""
    data = evaluation.trained_data
    return f"{model} was trained on {listed(evaluation.trained_on)} of {data}{held_out}.{also}"


def _seen(evaluation: EvaluationFile) -> list[str]:
    """Of the images that are no new ones to the model."""
    own = evaluation.trained_on or []
    shared = [d for d in evaluation.domains if _role(evaluation, d) == "yes"]
    sentences = []
    if before := [domain for domain in shared if domain not in own]:
        sentences.append(
            f"ATTENTION: the initial weights had been trained on {listed(before)}, so that the "
            "accuracy there says nothing of a domain that was never seen."
        )
    counts = [domain.seen for domain in evaluation.domains.values()]
    if None not in counts:
        seen = sum(count or 0 for count in counts)
        trained = f"{counted(seen, 'image')} of these {'was' if seen == 1 else 'were'} trained on"
        most = "ATTENTION: " if 2 * seen >= evaluation.tally.images else ""
        if seen:
            sentences.append(f"{most}{trained}: their accuracy says nothing of new images.")
    elif shared := [domain for domain in shared if domain in own]:
        sentences.append(
            f"Of {listed(shared)} most images may have been trained on: their accuracy says "
            "nothing of new images. The run's folder with its split.json tells which (--part test)."
        )
    return sentences


def _role(evaluation: EvaluationFile, domain: str) -> str:
    """Whether a domain was trained on; of another data set's nothing is known but their names."""
    own = evaluation.data == evaluation.trained_data and domain != _ALL
    if evaluation.trained_on is None or not own:
        return ABSENT
    return "yes" if domain in evaluation.trained_on + evaluation.trained_before else "no"


_HOW = {
    "grad-cam": "Grad-CAM at the last convolution",
    "integrated-gradients": "integrated gradients from grey",
}


def explanation_section(explanation: Explanation) -> Section:
    """The explanation as a section of a report; its figures lie beside the file."""
    title = f"What {explanation.model} looks at on {explanation.data}"
    return Section("explanation", title, [Listing(explanation_sentences(explanation))])


def explanation_sentences(explanation: Explanation) -> list[str]:
    """How answers were explained, and what neighbours on the map have in common."""
    shown = explanation.shown
    about = f"{counted(len(shown), 'answer')} explained by {_HOW[explanation.by]}"
    wrong = sum(answer.label not in (None, answer.predicted) for answer in shown)
    if wrong:
        about += f", {wrong} of them wrong: those are chosen on purpose and say nothing of how many"
    sentences = [f"{about}."]
    if len(explanation.places) > 1:
        sentences.append(_neighbours(explanation))
    return sentences


def _neighbours(explanation: Explanation) -> str:
    of_class, by_chance = explanation.neighbours("label")
    said, end = f"class in {of_class:.0%} (by chance {by_chance:.0%})", "."
    if len({place.domain for place in explanation.places}) > 1:
        of_domain, at_random = explanation.neighbours("domain")
        said += f" and of its domain in {of_domain:.0%} (by chance {at_random:.0%})"
        end = ": the nearer the second is to chance, the less the features tell of the domain."
    said += f" of {counted(len(explanation.places), 'image')}{end}"
    return f"On the map of features, the nearest neighbour of an image is of its {said}"
