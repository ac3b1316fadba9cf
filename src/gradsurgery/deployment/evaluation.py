"""A trained model on images whose classes are known."""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from gradsurgery.backbones.weights import file_digest
from gradsurgery.data import Source, cpus, unknown_domain
from gradsurgery.data.cache import bad_image
from gradsurgery.data.derived import decoder_of
from gradsurgery.data.groups import group_numbers
from gradsurgery.data.source import look
from gradsurgery.data.splits import file_mark
from gradsurgery.deployment.pictures import Job, Prepared, prepared
from gradsurgery.deployment.trained_model import BATCH, TrainedModel, check_count
from gradsurgery.documents.deployment import DomainEvaluation, EvaluatedPart, EvaluationFile
from gradsurgery.documents.record import SkippedFile, SplitFile
from gradsurgery.errors import ArgumentError, DataError, check_kind
from gradsurgery.training.outcome import Answers


def evaluate_model(
    model: TrainedModel,
    source: Source,
    *,
    domains: Collection[str] | None = None,
    part: EvaluatedPart = "all",
    skip_bad: bool = False,
    batch_size: int = BATCH,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EvaluationFile:
    """What the model says of the images of a source, prepared as in its training.

    Classes are matched by name; images of a class that the model does not know are counted apart.

    Args:
        model: from `load_model`.
        source: from `open_source`, with classes "all" where domains lack classes.
        domains: those to look at; None is all.
        part: of the split that lies beside the model file, for the data that it was trained on.
        skip_bad: leave out images that cannot be decoded, and list them.
        batch_size: images that the network is given at a time.
        workers: threads that decode; one a processor by default.
        progress: called with (images done, images in all).

    Raises `ArgumentError` for a domain or a part that is not there, `DataError` for an image that
    cannot be decoded (without `skip_bad`) and where there is none of a class that the model knows.
    """
    workers = cpus() if workers is None else workers
    _check(model, source, batch_size, workers)
    listing = source.listing
    chosen = _chosen(source, domains)
    split = _split_in(model.file.parent)
    seen = _Seen(split or _split_in(model.run_folder), model, source)
    wanted = _wanted(model, source, split, chosen, part)
    labels = _labels(model, source)
    counted = {i for i in wanted if labels[i] >= 0}
    if not counted:
        raise _unknown_classes(model, source, len(wanted))
    groups = group_numbers(source.groups, listing.domain)
    answers = {domain: Answers() for domain in chosen}
    skipped: list[SkippedFile] = []
    jobs = _jobs(model, source, counted, seen)
    for batch in prepared(jobs, model.preprocess.size, batch_size, workers):
        if batch.bad and not skip_bad:
            raise bad_image(source, *batch.bad[0])
        skipped += [SkippedFile(identity=listing.identities[i], reason=why) for i, why in batch.bad]
        _answer(model, source, batch, labels, answers, groups=groups)
        progress(len(skipped) + sum(each.count for each in answers.values()), len(counted))
    about = model.about
    return EvaluationFile(
        model=str(model.file),
        model_digest=file_digest(model.file)[:16],
        classes=list(model.classes),
        trained_data=about.data,
        trained_on=about.domains,
        target=about.target,
        trained_before=about.domains_before,
        data=source.name,
        part=part,
        domains={
            domain: DomainEvaluation(
                tally=answers[domain].tally(len(model.classes)),
                unknown=_unknown(source, wanted, labels, domain),
                seen=seen.count(domain),
            )
            for domain in chosen
        },
        skipped=skipped,
    )


def _check(model: TrainedModel, source: Source, batch_size: int, workers: int) -> None:
    check_kind("model", model, TrainedModel, "what gradsurgery.load_model gives")
    check_kind("source", source, Source, "what gradsurgery.open_source gives")
    check_count("batch_size", batch_size)
    check_count("workers", workers)


def _chosen(source: Source, domains: Collection[str] | None) -> list[str]:
    if isinstance(domains, str):
        raise ArgumentError(
            f"domains are a list of names, found {domains!r:.80}; give [{domains!r:.80}]"
        )
    chosen = list(source.domains) if domains is None else list(domains)
    if unknown := [domain for domain in chosen if domain not in source.domains]:
        raise ArgumentError(unknown_domain(source.name, unknown[0], source.domains))
    return chosen


def _unknown_classes(model: TrainedModel, source: Source, images: int) -> DataError:
    cure = "give the data other class names"
    if set(source.domains) <= set(model.classes):
        cure = (
            "its folders of domains are called as the classes: it is of one domain, and deeper "
            'than class/image; say so with --layout "{class}/**/{name}"'
        )
    return DataError(
        f"none of the {images} images of {source.name} is of a class that the model knows "
        f"({', '.join(model.classes):.300}); {cure}"
    )


def _labels(model: TrainedModel, source: Source) -> np.ndarray:
    """Of each image, the position of its class among the model's, -1 where it is none.

    A folder that was copied from a Mac may be called otherwise than it looks.
    """
    known = {look(name): position for position, name in enumerate(model.classes)}
    return np.array([known.get(look(name), -1) for name in source.classes])[source.listing.label]


def _answer(
    model: TrainedModel,
    source: Source,
    batch: Prepared[int],
    labels: np.ndarray,
    answers: dict[str, Answers],
    *,
    groups: np.ndarray | None,
) -> None:
    """Add what the model says of a batch to the answers of each image's domain."""
    logits = model.logits(torch.from_numpy(batch.pixels)).cpu()
    keys = np.array(batch.keys, dtype=np.int64)
    domains = source.listing.domain[keys]
    for domain in np.unique(domains).tolist():
        rows = np.flatnonzero(domains == domain)
        truth = torch.from_numpy(labels[keys[rows]])
        of_groups = None if groups is None else groups[keys[rows]]
        answers[source.domains[domain]].add(logits[torch.from_numpy(rows)], truth, of_groups)


def _split_in(folder: Path | None) -> SplitFile | None:
    there = folder is not None and (folder / SplitFile.file_name).exists()
    return SplitFile.load(folder) if there and folder is not None else None


class _Seen:
    """Which of the images the model was trained on, so far as that is known.

    By their files, where the split of the run says what these were; else by their names, where the
    source is called as the data that the model was trained on.
    """

    def __init__(self, split: SplitFile | None, model: TrainedModel, source: Source) -> None:
        self.source, self.found, self.by_file = source, set[int](), False
        self.trained: set[str] | None = None
        if split is None:
            return
        stated = model.about.domains  # the others' training images were not used
        used = {d for d in split.domains if d in stated} if stated else set(split.domains)
        used.discard(model.about.target or "")
        names = {domain: parts.get("train", []) for domain, parts in split.domains.items()}
        known = {name for of_domain in names.values() for name in of_domain}
        if split.files:
            self.by_file, names = True, split.files
        elif source.name != model.about.data or known.isdisjoint(source.listing.identities):
            return
        self.trained = {name for domain in used for name in names.get(domain, ())}

    def look_at(self, position: int, content: bytes) -> None:
        """Take note of an image."""
        name = self.source.listing.identities[position]
        if self.by_file:
            name = file_mark(hashlib.sha256(content).hexdigest())
        if self.trained is not None and name in self.trained:
            self.found.add(position)

    def count(self, domain: str) -> int | None:
        """How many of the domain's images were trained on; None where that is not known."""
        if self.trained is None:
            return None
        source = self.source
        return len([i for i in self.found if source.domains[source.listing.domain[i]] == domain])


def _wanted(
    model: TrainedModel,
    source: Source,
    split: SplitFile | None,
    domains: list[str],
    part: EvaluatedPart,
) -> list[int]:
    """Positions of the images of the domains and the part."""
    listing = source.listing
    of_domains = [
        i for i in range(len(listing.label)) if source.domains[listing.domain[i]] in domains
    ]
    if part == "all":
        return of_domains
    if split is None or source.name != model.about.data:
        run = model.run_folder
        known = "" if run in (None, model.file.parent) else f", {run},"
        raise ArgumentError(
            f"there is no split of {source.name} beside {model.file}, a model that was trained on "
            f"{model.about.data}; give the run's folder{known} and that data, or leave --part out"
        )
    members = {name for domain in domains for name in split.domains.get(domain, {}).get(part, ())}
    chosen = [i for i in of_domains if listing.identities[i] in members]
    if members and not chosen:
        raise DataError(
            f"{source.name} has none of the {len(members)} images of the run's split, as "
            f"{min(members)}: its own are called as {listing.identities[0]}; give the data that "
            "the run was trained on, read as it was (--layout, --columns), or leave --part out"
        )
    if len(chosen) < len(members):
        absent = min(members - {listing.identities[i] for i in chosen})
        raise DataError(
            f"{source.name} lacks {len(members) - len(chosen)} images of the run's split, the "
            f"first {absent}; give the data that the run was trained on, read as it was, or leave "
            "--part out"
        )
    if not chosen:
        raise DataError(f"the run's split has no {part} images of {', '.join(domains)}")
    return chosen


def _jobs(
    model: TrainedModel, source: Source, counted: set[int], seen: _Seen
) -> Iterator[Job[int]]:
    own, size = decoder_of(source) is not None, model.preprocess.size
    for position, content in source.contents():
        if position in counted:
            seen.look_at(position, content)
            if own:
                yield position, partial(source.decode, position, content, size)
            else:
                yield position, partial(model.preprocess.pixels, content)


def _unknown(source: Source, wanted: list[int], labels: np.ndarray, domain: str) -> dict[str, int]:
    """How many of a domain's images are of classes that the model does not know, by class."""
    listing = source.listing
    of_domain = [i for i in wanted if source.domains[listing.domain[i]] == domain]
    return dict(Counter(source.classes[listing.label[i]] for i in of_domain if labels[i] < 0))
