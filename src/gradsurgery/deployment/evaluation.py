"""A trained model on images whose classes are known."""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from functools import partial

import numpy as np
import torch

from gradsurgery.backbones.weights import file_digest
from gradsurgery.data import Source, cpus, unknown_domain
from gradsurgery.data.cache import bad_image
from gradsurgery.data.derived import decoder_of
from gradsurgery.data.groups import group_numbers
from gradsurgery.data.source import as_seen
from gradsurgery.data.splits import file_mark
from gradsurgery.deployment.pictures import Job, Prepared, prepared
from gradsurgery.deployment.trained_model import BATCH, TrainedModel, check_count
from gradsurgery.documents.deployment import DomainEvaluation, EvaluatedPart, EvaluationFile
from gradsurgery.documents.record import SkippedFile, SplitFile
from gradsurgery.documents.tally import Tally
from gradsurgery.errors import ArgumentError, DataError, check_kind
from gradsurgery.training.outcome import Answers


def evaluate_model(
    model: TrainedModel,
    source: Source,
    *,
    against: TrainedModel | None = None,
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
        against: another model of the same classes, to compare with it image by image: `paired`, of
            all and of each domain, for `compare_answers`. Images that one of them was trained on
            are left out of that, as far as they are known.
        domains: those to look at; None is all.
        part: of the split of the model's run, for the data that it was trained on.
        skip_bad: leave out images that cannot be decoded, and list them.
        batch_size: images that are read at a time, which a GPU passes at once.
        workers: threads that decode; one a processor by default.
        progress: called with (images done, images in all), of both models.

    Raises `ArgumentError` for a domain or a part that is not there and for another model of other
    classes, `DataError` for an image that cannot be decoded (without `skip_bad`) and where there is
    none of a class that the model knows.
    """
    workers = cpus() if workers is None else workers
    _check(model, source, batch_size, workers)
    models = [model] if against is None else [model, _comparable(model, against)]
    chosen = _chosen(source, domains)
    wanted = _wanted(model, source, chosen, part)
    passes = [_Pass(each, source, chosen, wanted) for each in models]
    total, before = sum(len(each.counted) for each in passes), 0
    for each in passes:
        for done in each.run(batch_size, workers, skip_bad=skip_bad):
            progress(before + done, total)
        before += len(each.counted)
    evaluation = passes[0].evaluation(part)
    if against is not None:
        evaluation.against = passes[1].evaluation(part)
        for domain, found in evaluation.domains.items():
            found.paired = _paired(passes[0], passes[1], source.domains.index(domain))
    return evaluation


class _Pass:
    """A model's way through the images of a source, and what it said of each.

    counted: the positions of the images of its classes. right: of every image 1 where it has it
    right, 0 where not, -1 where it was not asked or the image cannot be decoded.
    """

    def __init__(
        self, model: TrainedModel, source: Source, domains: list[str], wanted: list[int]
    ) -> None:
        self.model, self.source, self.wanted = model, source, np.array(wanted, np.int64)
        self.seen = _Seen(_split_of(model), model, source)
        self.labels = _labels(model, source)
        self.counted = {i for i in wanted if self.labels[i] >= 0}
        if not self.counted:
            raise _unknown_classes(model, source, len(wanted))
        self.groups = group_numbers(source.groups, source.listing.domain)
        self.answers = {domain: Answers() for domain in domains}
        self.right = np.full(len(self.labels), -1)
        self.skipped: list[SkippedFile] = []

    def run(self, batch_size: int, workers: int, *, skip_bad: bool) -> Iterator[int]:
        """Go, and say after each batch how many images are done."""
        names = self.source.listing.identities
        jobs = _jobs(self.model, self.source, self.counted, self.seen)
        for batch in prepared(jobs, self.model.preprocess.size, batch_size, workers):
            if batch.bad and not skip_bad:
                raise bad_image(self.source, *batch.bad[0])
            self.skipped += [SkippedFile(identity=names[i], reason=why) for i, why in batch.bad]
            self._answer(batch)
            yield len(self.skipped) + sum(each.count for each in self.answers.values())
        if len(self.skipped) == len(self.counted):
            first = self.skipped[0]
            raise DataError(
                f"none of the {len(self.skipped)} images of {self.source.name} can be decoded, the "
                f"first {first.identity}: {first.reason}"
            )

    def _answer(self, batch: Prepared[int]) -> None:
        """Add what the model says of a batch to the answers of each image's domain."""
        logits = self.model.logits(torch.from_numpy(batch.pixels)).cpu()
        keys = np.array(batch.keys, dtype=np.int64)
        self.right[keys] = logits.argmax(dim=1).numpy() == self.labels[keys]
        domains = self.source.listing.domain[keys]
        for domain in np.unique(domains).tolist():
            rows = np.flatnonzero(domains == domain)
            truth = torch.from_numpy(self.labels[keys[rows]])
            of_groups = None if self.groups is None else self.groups[keys[rows]]
            answers = self.answers[self.source.domains[domain]]
            answers.add(logits[torch.from_numpy(rows)], truth, of_groups)

    def evaluation(self, part: EvaluatedPart) -> EvaluationFile:
        """What came of it."""
        model, about = self.model, self.model.about
        trained = self.seen.counts(self.counted)
        return EvaluationFile(
            model=str(model.file),
            model_digest=file_digest(model.file)[:16],
            classes=list(model.classes),
            trained_data=about.data,
            trained_on=about.domains,
            target=about.target,
            trained_before=about.domains_before,
            data=self.source.name,
            part=part,
            domains={
                domain: DomainEvaluation(
                    tally=answers.tally(len(model.classes)),
                    unknown=_unknown(self.source, self.wanted, self.labels, domain),
                    seen=None if trained is None else trained[domain],
                )
                for domain, answers in self.answers.items()
            },
            skipped=self.skipped,
        )


def _paired(this: _Pass, other: _Pass, domain: int) -> Tally:
    """The images of a domain that are new to both, by which of the two has them right.

    Of images in groups those are new whose group has none that was trained on: who knows a patient
    knows more than the images.
    """
    known = np.zeros(len(this.right), dtype=bool)
    known[[*this.seen.found, *other.seen.found]] = True
    if this.groups is not None:
        known = np.isin(this.groups, this.groups[known])
    answered = np.minimum(this.right, other.right) >= 0
    rows = np.flatnonzero(answered & ~known & (this.source.listing.domain == domain))
    group = None if this.groups is None else this.groups[rows]
    unknown = np.full(len(rows), np.nan, np.float32)  # confidence and loss are of no use here
    return Tally.of(other.right[rows], this.right[rows], unknown, unknown, 2, group=group)


def _comparable(model: TrainedModel, against: TrainedModel) -> TrainedModel:
    """The other model; raises `ArgumentError` where the two cannot be compared."""
    check_kind("against", against, TrainedModel, "what gradsurgery.load_model gives")
    if file_digest(model.file) == file_digest(against.file):
        raise ArgumentError(f"{model.file} and {against.file} are the same model; name two")
    ours, theirs = ({as_seen(name): name for name in each.classes} for each in (model, against))
    apart = [
        f"only {each.file} knows {', '.join(names):.200}"
        for each, names in (
            (model, [name for key, name in ours.items() if key not in theirs]),
            (against, [name for key, name in theirs.items() if key not in ours]),
        )
        if names
    ]
    if apart:
        raise ArgumentError(
            f"two models are compared on the same classes: {' and '.join(apart)}; evaluate each by "
            "itself"
        )
    return against


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
    known = {as_seen(name): position for position, name in enumerate(model.classes)}
    return np.array([known.get(as_seen(name), -1) for name in source.classes])[source.listing.label]


def _split_of(model: TrainedModel) -> SplitFile | None:
    """That of its run: beside it, or where its run lies."""
    for folder in (model.file.parent, model.run_folder):
        if folder is not None and (folder / SplitFile.file_name).exists():
            return SplitFile.load(folder)
    return None


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

    def counts(self, among: set[int]) -> Counter[str] | None:
        """How many of these were trained on, by domain; None where that is not known."""
        if self.trained is None:
            return None
        source = self.source
        return Counter(source.domains[source.listing.domain[i]] for i in self.found & among)


def _wanted(
    model: TrainedModel,
    source: Source,
    domains: list[str],
    part: EvaluatedPart,
) -> list[int]:
    """Positions of the images of the domains and the part."""
    listing, asked = source.listing, list(map(source.domains.index, domains))
    of_domains = np.flatnonzero(np.isin(listing.domain, asked)).tolist()
    if part == "all":
        return of_domains
    split = _split_of(model)
    if split is None or source.name != model.about.data:
        raise ArgumentError(
            f"there is no split of {source.name} beside {model.file}, a model that was trained on "
            f"{model.about.data}; give the run's folder and that data, or leave --part out"
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
        raise DataError(
            f"the run's split has no {part} images of {', '.join(domains)}; give another --part, "
            "or images that were kept apart"
        )
    return chosen


def _jobs(
    model: TrainedModel, source: Source, counted: set[int], seen: _Seen
) -> Iterator[Job[int]]:
    own, size = decoder_of(source) is not None, model.preprocess.size
    # of images in groups any may have been trained on, by which others are known
    for position, content in source.contents(counted if source.groups is None else None):
        seen.look_at(position, content)
        if position in counted:
            if own:
                yield position, partial(source.decode, position, content, size)
            else:
                yield position, partial(model.preprocess.pixels, content)


def _unknown(source: Source, wanted: np.ndarray, labels: np.ndarray, domain: str) -> dict[str, int]:
    """How many of a domain's images are of classes that the model does not know, by class."""
    of_domain = source.listing.domain[wanted] == source.domains.index(domain)
    unknown = wanted[of_domain & (labels[wanted] < 0)].tolist()
    return dict(Counter(source.classes[source.listing.label[i]] for i in unknown))
