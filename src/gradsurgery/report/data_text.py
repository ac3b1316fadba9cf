"""What is said of a data set: gaps, imbalance, and pictures that it holds more than once."""

from collections.abc import Mapping, Sequence

from gradsurgery.documents.data_options import left_out_classes
from gradsurgery.documents.record import Copies, DataRecord, Record
from gradsurgery.report.section import counted, listed

_UNEVEN = 3.0
"""From how many times as many images on the largest class or domain is worth a word."""


def gap_sentences(counts: Mapping[str, Sequence[int]], classes: Sequence[str]) -> list[str]:
    """Which classes a domain lacks, one sentence a domain.

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
    return sentences


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
        most, least = max(there, key=lambda k: there[k]), min(there, key=lambda k: there[k])
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


def copies_sentences(copies: Copies, *, alike: bool = False, target: str = "") -> list[str]:
    """What pictures that occur more than once mean; empty where there are none.

    alike: they look alike, and are not the same file. target: the domain that a run held out.
    """
    if not copies.images:
        return []
    what = "looks like another image" if alike else "is one of several identical files"
    sentences = [f"{counted(copies.images, 'image', what)}."]
    if copies.of_target:
        like = "like images that were trained on" if alike else "identical to images trained on"
        sentences.append(
            f"Test images of the target {target} {like}: {copies.of_target:,}; on them the "
            "accuracy says nothing of a domain that was never seen."
        )
    for domains, count in copies.across_domains.items():
        sentences.append(f"The domains {domains} share {counted(count, 'picture')}.")
    if copies.across_parts:
        sentences.append(
            "Pictures that are trained on, and validated or tested on too: "
            f"{copies.across_parts:,}."
        )
    if copies.across_classes:
        wrong = "" if alike else ", of which one at least is wrong"
        sentences.append(f"Pictures with more than one class{wrong}: {copies.across_classes:,}.")
    sentences += [f"For example {' and '.join(names)}." for names in copies.examples[:3]]
    return sentences


def copied_targets(records: Sequence[Record]) -> list[str]:
    """A sentence for every target of which half the test images or more were trained on too."""
    sentences = {}
    for record in records:
        target, copies = record.configuration.target, record.data.identical
        tested = record.split.sizes[target].test if target in record.split.sizes else 0
        if copies is not None and tested and 2 * copies.of_target >= tested:
            sentences[record.data.name, target] = (
                f"ATTENTION: {copies.of_target:,} of the {tested:,} test images of {target} in "
                f"{record.data.name} are identical to images that were trained on, so that the "
                "accuracy on it says nothing of a domain that was never seen."
            )
    return list(sentences.values())


def recorded_sentences(records: Sequence[Record]) -> list[str]:
    """What is to be said of the data of some runs, each sentence once."""
    sentences: dict[str, None] = {}
    for record in records:
        data, target = record.data, record.configuration.target
        found = [*left_out_sentences(data), *gap_sentences(data.class_images, data.classes)]
        if data.class_images:
            found += imbalance_sentences(data.class_images, data.classes)
        for copies, alike in ((data.identical, False), (data.alike, True)):
            if copies is not None:
                found += copies_sentences(copies, alike=alike, target=target)
        if record.split.unused:
            unused = counted(record.split.unused, "image", "is in no part of the split")
            found.append(f"{unused}.")
        about = f"{data.name}, {target} held out: "
        sentences.update(dict.fromkeys(about + sentence for sentence in found))
    return list(sentences)
