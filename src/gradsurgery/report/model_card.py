"""The card of a deployed model: Markdown with the metadata that the Hugging Face Hub reads."""

import math
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from statistics import fmean, stdev
from typing import Any

import yaml

from gradsurgery.documents.deployment import Deployment, ModelDescription
from gradsurgery.documents.plan import rounded
from gradsurgery.documents.record import Record
from gradsurgery.documents.selection import CRITERIA
from gradsurgery.documents.studies import Diagnosis
from gradsurgery.errors import printable
from gradsurgery.report.evaluation_text import known_sentence, known_targets, no_better_sentences
from gradsurgery.report.gradients_text import diagnosis_sentences
from gradsurgery.report.rendering import markdown_text, section_markdown
from gradsurgery.report.run_text import accuracy_text, gap_sentences, left_out_sentences
from gradsurgery.report.section import (
    ABSENT,
    Block,
    Listing,
    Section,
    Table,
    Text,
    counted,
    listed,
    percent,
    plain_table,
    value_text,
)
from gradsurgery.results.classification import as_good_as_one_class
from gradsurgery.results.deployment import low_end
from gradsurgery.results.runs import guesses
from gradsurgery.results.statistics import mean_interval

_WEAKEST = 10
"""Classes that the card names."""
_FEW = 30
"""Test images of a domain below which the card is wary."""


def model_card(deployment: Deployment, record: Record, conflict: Diagnosis | None) -> str:
    """README.md of the model: what to expect of it on a new domain comes first.

    record: of the run on all domains. conflict: of its model's domains, None where not measured.
    """
    conflicts = [Listing(diagnosis_sentences(conflict))] if conflict is not None else []
    expected = [*_expected(deployment, record)]
    parts = [
        Section("expect", "What to expect on a domain it has not seen", expected),
        Section("classes", "Weak classes", [*_classes(deployment)]),
        Section("conflict", "Where its domains conflict", conflicts),
        Section("known", "On the domains that it was trained on", [*_known(record)]),
        Section("training", "Data and training", [*_training(deployment, record)]),
        Section("candidates", "What it was chosen among", [*_candidates(deployment)]),
    ]
    title = f"{markdown_text(deployment.data)}: {len(deployment.classes)} classes, trained on "
    title += counted(len(deployment.domains), "domain")
    return _card(_metadata(deployment, record), title, parts)


def short_card(about: ModelDescription, record: Record | None) -> str:
    """README.md of a model that was not deployed: what its file and its run's record say."""
    expected = "How it does on a domain that it was not trained on was not measured."
    target = about.target
    if target is not None and record is not None and target in record.result.best.test_accuracy:
        best, tests = record.result.best, record.result.best.tests.get(target)
        accuracy = accuracy_text(best.test_accuracy[target], tests)
        on = f"Accuracy on the test images of {target}, a domain that was held out"
        sentences = [f"{on}: {accuracy}, of one run.", *known_targets([record])]
        expected = " ".join([*sentences, *no_better_sentences(tests)])
    data = about.data + ("" if about.domains is None else f"; domains {listed(about.domains)}")
    training = f"{about.method} on {about.backbone}, seed {about.seed}, step {about.step}"
    parts = [
        Section("expect", "What to expect", [Text(expected)]),
        Section("classes", "Classes", [Text(f"{listed(about.classes, len(about.classes))}.")]),
        Section("training", "Data and training", [Text(f"{data}. {training}.")]),
    ]
    title = f"{markdown_text(about.data)}: {len(about.classes)} classes"
    return _card(_tags(about.method), title, parts)


def _card(metadata: dict[str, Any], title: str, sections: Sequence[Section]) -> str:
    front = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    written = [section_markdown(section, "##") for section in sections if section.blocks]
    return "\n".join([f"---\n{front}---", f"# {title}", "", _USE, *written])


_USE = """```python
import gradsurgery as gs

model = gs.load_model("model.safetensors")  # or the folder that this file is in
predictions = model.predict(["a.jpg", "b.png"])
```
"""


def _metadata(deployment: Deployment, record: Record) -> dict[str, Any]:
    """What the Hub reads: https://huggingface.co/docs/hub/model-cards."""
    name = printable(deployment.data)
    accuracy = {
        "type": "accuracy",
        "name": "accuracy on a domain left out, mean over the domains",
        "value": round(fmean(_by_domain(deployment)), 4),
    }
    on = record.configuration.data.removeprefix("hf://")
    from_hub = record.configuration.data.startswith("hf://")
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"type": on if from_hub else "images", "name": name},
        "metrics": [accuracy],
    }
    return {
        **_tags(deployment.candidate.method),
        **({"datasets": [on]} if from_hub else {}),
        "metrics": ["accuracy"],
        "model-index": [{"name": f"{name} {deployment.candidate.method}", "results": [result]}],
    }


def _tags(method: str) -> dict[str, Any]:
    """What the metadata of every model begin with."""
    kind = "image-classification"
    tags = [kind, "domain-generalization", method]
    return {"library_name": "gradsurgery", "pipeline_tag": kind, "tags": tags}


def _by_domain(deployment: Deployment) -> list[float]:
    return [fmean(deployment.candidate.unseen[domain]) for domain in deployment.domains]


def expectation(deployment: Deployment) -> Text:
    """What accuracy to expect on a new domain, in words."""
    means, count = _by_domain(deployment), len(deployment.domains)
    guess, images = 1 / len(deployment.classes), [c.images for c in deployment.classes_unseen]
    naming = "To guess one of its classes"
    if sum(images):
        guess, naming = max(images) / sum(images), "Always to name the most frequent class"
    poor = as_good_as_one_class(low_end(deployment), images)
    warning = " ITS RUNS DO NO BETTER THAN THAT, as far as their test images can tell."
    return Text(
        f"Expect {percent(fmean(means))} of the images of a domain that it was not trained on to "
        f"be recognised: {percent(min(means))} on the worst of {count} domains left out in turn, "
        f"{percent(max(means))} on the best. {naming} is right for {percent(guess)}."
        f"{'' if poor is None else warning}"
    )


def doubtful(deployment: Deployment) -> list[str]:
    """What makes the accuracies doubtful, as images of a domain left out that were trained on."""
    sentences = [known_sentence(deployment.data, d) for d in deployment.known]
    sentences += [f"ATTENTION: {doubt}" for doubt in deployment.doubts]
    for each in deployment.copied:
        counts = [("identical to", each.identical), ("like", each.alike)]
        those = listed(f"{n:,} {'is' if n == 1 else 'are'} {how}" for how, n in counts if n)
        may_be = "is" if each.identical else "may be"  # images can be alike by chance
        meaning = f"the accuracy on it {may_be} too high for a domain that was never seen"
        if 2 * (each.identical + each.alike) >= each.images:
            meaning = "THE ACCURACY ON IT SAYS NOTHING OF A DOMAIN THAT WAS NEVER SEEN"
        cure = "; see gradsurgery data info, and --drop-duplicates" if each.identical else ""
        sentences.append(
            f"ATTENTION: of the {counted(each.images, 'test image')} of {each.domain}, "
            f"{those} images of other domains that were trained on when it was left out: "
            f"{meaning}{cure}."
        )
    return sentences


def few_tests(deployment: Deployment, record: Record) -> list[str]:
    """A sentence on the domains that were tested on few images, if there are any."""
    groups = deployment.tested_groups
    tested = deployment.tested | groups
    few = [domain for domain in deployment.domains if tested.get(domain, _FEW) < _FEW]
    if not few:
        return []
    more = " With --test-on all every image of a domain left out is tested on."
    return [
        f"An accuracy on fewer than {_FEW} {'groups of ' if groups else ''}images says little, and "
        "counts as much as the others in the mean, the worst and the best: so it is for "
        f"{listed(few)}.{more if record.configuration.test_on == 'test' else ''}"
    ]


def _expected(deployment: Deployment, record: Record) -> Iterator[Block]:
    means, domains, tested = _by_domain(deployment), deployment.domains, deployment.tested
    groups = deployment.tested_groups
    yield expectation(deployment)
    if doubts := doubtful(deployment):
        yield Listing(doubts)
    yield Text(
        f"Each domain was left out of training for {counted(len(deployment.seeds), 'seed')}; this "
        "model was trained on all of them, with the same method and settings."
    )
    if len(means) > 1 and min(means) == max(means):
        yield Text(
            f"The {len(means)} domains left out have one and the same accuracy, so that no "
            "interval can be estimated from them: it may be quite another on the next. Label some "
            "of its images, and measure: gradsurgery evaluate."
        )
    elif (interval := _prediction(means)) is not None:
        yield Text(
            f"If a new domain is to these {len(domains)} as they are to each other, its accuracy "
            f"lies between {percent(interval[0])} and {percent(interval[1])} with a probability "
            "of 95 % (Student's prediction interval). So few domains say little about the next; "
            "one that is unlike all of them may do worse. Label some of its images, and measure: "
            "gradsurgery evaluate."
        )
    rows = []
    for domain in domains:
        runs = deployment.candidate.unseen[domain]
        spread = f" ± {100 * stdev(runs):.1f}" if len(runs) > 1 else ""
        images = f"{tested[domain]:,}" if domain in tested else ABSENT
        images += f" of {counted(groups[domain], 'group')}" if domain in groups else ""
        accuracy, without = f"{100 * fmean(runs):.1f}{spread}", deployment.without_it[domain]
        rows.append([domain, images, accuracy, f"{100 * without:.1f}"])
    without = fmean([*deployment.without_it.values()])
    rows.append(["mean", "", f"{100 * fmean(means):.1f}", f"{100 * without:.1f}"])
    columns = ["left out", "test images", "accuracy (%)", "chosen without it (%)"]
    shown = 4 if len(deployment.candidates) > 1 else 3
    yield plain_table("", columns[:shown], [row[:shown] for row in rows])
    if gaps := gap_sentences(record.data.class_images, record.data.classes):
        yield Text(f"{' '.join(gaps)} The accuracy on a domain is that of the classes it has.")
    yield from map(Text, few_tests(deployment, record))
    if shown == 4:
        yield Text(
            "The last column is what the candidate has that the other domains' runs choose: it "
            "is not too high for having been chosen, as the one before it is a little."
        )


def _prediction(means: list[float]) -> tuple[float, float] | None:
    """x̄ ± t s √(1 + 1/D), cut off at 0 and 1; None of one domain."""
    mean = mean_interval(means)
    if mean.low is None:
        return None
    margin = (mean.mean - mean.low) * math.sqrt(mean.n + 1)  # that of the mean is t s / √D
    return max(0.0, mean.mean - margin), min(1.0, mean.mean + margin)


def _classes(deployment: Deployment) -> Iterator[Block]:
    """The classes that are recognised least in domains left out."""
    seen = [each for each in deployment.classes_unseen if each.images]
    if not seen:
        return
    weakest = sorted(seen, key=lambda each: each.recognised / each.images)[:_WEAKEST]
    yield plain_table(
        "Of the test images of domains left out, over all runs of the chosen candidate",
        ["class", "images", "recognised (%)", "times predicted"],
        [
            [c.name, f"{c.images:,}", f"{100 * c.recognised / c.images:.1f}", f"{c.predicted:,}"]
            for c in weakest
        ],
    )
    if never := [each.name for each in seen if not each.predicted]:
        yield Text(f"Never predicted of such an image: {listed(never)}.")


def _known(record: Record) -> Iterator[Block]:
    best = record.result.best
    if guesses(best, record):
        yield Text(
            "Its accuracy on the validation images is hardly above that of naming the largest "
            "class of all: it has not learned yet. Give it more iterations, or a higher learning "
            "rate."
        )
    if not best.test_accuracy:
        yield Text(
            "No images of the domains that it knows were kept for tests. On a new domain it does "
            "worse than on those that it was validated on, as above."
        )
        return
    yield Text(
        "Test images of the domains that it knows, which it has not seen. On a new domain it does "
        "worse, as above."
    )
    yield plain_table(
        "",
        ["domain", "accuracy (%)", "test images"],
        [
            [domain, f"{100 * accuracy:.1f}", f"{record.split.sizes[domain].test:,}"]
            for domain, accuracy in best.test_accuracy.items()
        ],
    )


def _training(deployment: Deployment, record: Record) -> Iterator[Block]:
    c, sizes = record.configuration, record.split.sizes.values()
    trained, validated = sum(s.train for s in sizes), sum(s.validation for s in sizes)
    yield Listing(
        [
            f"Data: {deployment.data}, {sum(record.data.images.values()):,} images (digest "
            f"{deployment.data_digest[:12]}); domains {listed(deployment.domains)}; "
            f"classes {listed(deployment.classes, len(deployment.classes))}.",
            *left_out_sentences(record.data),
            f"Trained on {trained:,} images of all domains; the model of the highest accuracy on "
            f"{validated:,} validation images of them, step {record.result.best.step} of "
            f"{record.result.last.step}.",
            f"Network: {c.backbone}, {'pretrained' if record.model.pretrained else 'from scratch'},"
            f" {record.model.parameters:,} parameters, images of {c.image_size} pixels.",
        ]
    )
    options = deployment.candidate.options
    texts = {name.replace("_", " "): value_text(value) for name, value in options.items()}
    if "weights" in texts:
        texts["weights"] = PurePath(texts["weights"]).name
    texts = {"method": c.method, "seed": str(c.seed)} | texts
    yield plain_table("What is not the default", ["option", "value"], texts.items())


def _candidates(deployment: Deployment) -> Iterator[Block]:
    if len(deployment.candidates) < 2:
        return
    score = CRITERIA[deployment.criterion].score
    if deployment.criterion == "leave-one-domain-out":  # of a deployment every domain is a source
        score = "the accuracy on each domain of the best model trained without it, averaged"
    yield Text(f"By {deployment.criterion}: {score}.")
    yield tried_table(deployment)


def tried_table(deployment: Deployment) -> Table:
    """Every candidate, how it scores, and which was chosen."""
    options = [each.options for each in deployment.candidates]
    names = sorted({name for of_one in options for name in of_one})
    varied = [n for n in names if len({repr(of_one.get(n)) for of_one in options}) > 1]
    rows = []
    shown = {name: rounded([of_one.get(name) for of_one in options]) for name in varied}
    for position, each in enumerate(deployment.candidates):
        values = [f"{name}={value_text(of[position])}" for name, of in shown.items()]
        if each.lacks:
            scores = [ABSENT, ABSENT, f"lacks {each.lacks}"]
        else:
            unseen = each.score("leave-one-domain-out", deployment.domains)
            validation = each.score("training-domain", deployment.domains)
            mark = "chosen" if position == deployment.chosen else ""
            scores = [f"{100 * unseen:.1f}", f"{100 * validation:.1f}", mark]
        rows.append([" ".join([each.method, *values]), *scores])
    return plain_table("", ["candidate", "left out (%)", "validation (%)", ""], rows)
