"""What a run makes of its data set: the split, the weight of classes, and what to be told of."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from gradsurgery.algorithms import Algorithm, Fish
from gradsurgery.algorithms.meta_learning import MLDG
from gradsurgery.backbones import Backbone
from gradsurgery.data import (
    Batches,
    DomainBatches,
    ImageSet,
    SingleDomainBatches,
    Source,
    Split,
    split_of,
)
from gradsurgery.data.duplicates import copies_in_run, doubts_of, looks_of
from gradsurgery.data.source import spelled_alike
from gradsurgery.data.splits import called_as_parts
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.data_options import left_out_classes, percentages
from gradsurgery.documents.record import Copies, Record
from gradsurgery.errors import ArgumentError, DataError
from gradsurgery.rules import ANDMask, SANDMask

Gaps = Sequence[tuple[str, str]]
_FAR = 5  # per cent of a domain's images: how far off a part is worth a word


@dataclass(frozen=True)
class ImagesUsed:
    """The images of a run and what it makes of them.

    sources: the domains that are trained and validated on.
    identical, alike: the pictures that are used more than once.
    doubts: what else makes results doubtful, in sentences.
    """

    images: ImageSet
    split: Split
    sources: list[str]
    identical: Copies
    alike: Copies | None
    doubts: list[str]

    @classmethod
    def of(cls, configuration: RunConfiguration, images: ImageSet) -> "ImagesUsed":
        """What a run uses of `images`; raises `DataError` where that is too little."""
        split, sources, target = _divided(configuration, images)
        looks = looks_of(images)
        copies = copies_in_run(images, looks, split, sources, target)
        return cls(images, split, sources, *copies, doubts_of(images, looks))

    def batches(self, configuration: RunConfiguration) -> Batches:
        """The batches of the run's steps."""
        batches = DomainBatches(
            self.images,
            self.split.train,
            domains=self.sources,
            batch_size=configuration.batch_size,
            seed=configuration.seed,
            balanced=configuration.balance == "classes",
        )
        return batches if configuration.batches == "multi" else SingleDomainBatches(batches)

    def prepare(
        self,
        algorithm: Algorithm,
        configuration: RunConfiguration,
        backbone: Backbone,
        device: torch.device,
    ) -> None:
        """Tell the algorithm of the classes' weights and gaps.

        Raises `ArgumentError` where it cannot do with them.
        """
        check_gaps(algorithm, configuration, self.images.domains, gaps_of(self.images))
        weights, gaps, heads = None, None, list[str]()
        if configuration.class_weights == "balanced":
            weights = balanced_weights(self._learned_of_classes()).to(device)
        if (lacking := self._lacking()).any():
            gaps, heads = lacking.to(device), _rows_of_classes(backbone, len(self.images.classes))
            if not heads and getattr(getattr(algorithm, "rule", None), "unanimous", False):
                raise ArgumentError(
                    f"the last layer of {backbone.name} is not known, and a domain lacks classes "
                    "of it; choose --classes common, or end the network in a nn.Linear"
                )
        algorithm.treat_classes(weights, gaps, heads)

    def notes(self, target: str | None, asked: str = "") -> Iterator[str]:
        """Lines for whoever watches the run.

        target: the domain held out, if any. asked: the option `split`.
        """
        tested = 0 if target is None else len(self.split.test[target])
        if skipped := self.images.skipped:
            first = f"{skipped[0].identity}: {skipped[0].reason}"
            are = "image is" if len(skipped) == 1 else "images are"
            yield f"{len(skipped)} {are} left out that cannot be decoded, as {first}"
        copied = self.identical.of_target
        if copied:
            meaning, are = "", "is" if copied == 1 else "are"
            if 2 * copied >= tested:
                meaning = ": THE ACCURACY SAYS NOTHING OF A DOMAIN THAT WAS NEVER SEEN"
            yield (
                f"{copied} of the {tested} test images of {target} {are} identical to images "
                f"that are trained on{meaning}; see gradsurgery data info, and --drop-duplicates"
            )
        elif self.identical.across_parts:
            yield (
                f"{_pictures(self.identical.across_parts)} trained on as well as validated or "
                "tested on; see gradsurgery data info, and --drop-duplicates"
            )
        if self.identical.across_classes:
            yield (
                f"{_pictures(self.identical.across_classes)} used under two classes, as "
                f"{' and '.join(self.identical.examples[0][:2])}"
            )
        if self.alike is not None and self.alike.of_target:
            similar = self.alike.of_target
            look = "looks like an image" if similar == 1 else "look like images"
            yield (
                f"{similar} of the {tested} test images of {target} {look} that "
                f"{'is' if similar == 1 else 'are'} trained on; see gradsurgery data info"
            )
        unlearned = (self._learned_of_classes() == 0).nonzero()[0].tolist()
        if unlearned:
            names = ", ".join(self.images.classes[label] for label in unlearned)
            yield f"no source domain has training images of {names}: that is not learned"
        if 0 in self.images.counts():
            yield from (f"classes {sentence}" for sentence in spelled_alike(self.images.classes))
        yield from (f"domains {sentence}" for sentence in called_as_parts(self.images.domains))
        yield from (doubt.removesuffix(".") for doubt in self.doubts)
        if unused := self.split.unused:
            are = "image is" if len(unused) == 1 else "images are"
            yield f"{len(unused)} {are} in no part of the split and not used, the first {unused[0]}"
        yield from _uneven(self.split, asked, self.images)
        left_out = left_out_classes((each.identity, each.reason) for each in self.images.left_out)
        if left_out:
            classes = "; ".join(f"{label} ({why})" for label, why in left_out.items())
            yield f"left out, for not every domain has them: {classes}"

    def _learned_of_classes(self) -> np.ndarray:
        """How many images of each class are trained on."""
        trained = np.concatenate([self.split.train[domain] for domain in self.sources])
        return np.bincount(self.images.label[trained], minlength=len(self.images.classes))

    def _lacking(self) -> Bool[Tensor, "domains classes"]:
        """The classes that a source domain has no image of, whatever its part.

        A class that none of them has is like any other: there is nothing to learn it from.
        """
        listed = self.images.counts()[[self.images.domains.index(d) for d in self.sources]]
        lacking = torch.from_numpy(listed == 0)
        return lacking & ~lacking.all(0)


def _uneven(split: Split, asked: str, images: ImageSet) -> Iterator[str]:
    """A line where whole groups leave the parts of a domain far from the percentages."""
    wanted = percentages(asked)
    if wanted is None or images.groups is None:
        return
    far = {}
    for domain, sizes in split.sizes().items():
        if np.intersect1d(split.train[domain], split.test[domain]).size:
            continue  # all of the target are tests
        found = [100 * size / max(sum(sizes.values()), 1) for size in sizes.values()]
        if max(abs(a - b) for a, b in zip(found, wanted, strict=True)) > _FAR:
            far[domain] = "/".join(f"{each:.0f}" for each in found)
    if far:
        more = f" (and {len(far) - 1} more)" if len(far) > 1 else ""
        domain, parts = next(iter(far.items()))
        yield f"{domain} is split {parts}{more}, not {asked}, for no group is divided"


def check_divided(configuration: RunConfiguration, images: ImageSet) -> None:
    """Raise `DataError` where the split of a run leaves too little."""
    _divided(configuration, images)


def _divided(
    configuration: RunConfiguration, images: ImageSet
) -> tuple[Split, list[str], str | None]:
    """The split, the source domains and the target, if any."""
    split = split_of(configuration, images, configuration.seed_of_split)
    sources = configuration.sources(images.domains)
    target = configuration.held_out(images.domains)
    _check_split(split, configuration, sources, target, images)
    return split, sources, target


def gaps_of(source: Source | ImageSet) -> Gaps:
    """The classes that a domain has no image of, as (domain, class)."""
    rows = zip(source.domains, source.counts() == 0, strict=True)
    return [(d, source.classes[label]) for d, row in rows for label in row.nonzero()[0]]


def check_gaps(
    algorithm: Algorithm, configuration: RunConfiguration, domains: Sequence[str], gaps: Gaps
) -> None:
    """Raise `ArgumentError` where the run cannot do with a source domain that lacks classes."""
    rule = getattr(algorithm, "rule", None)
    if isinstance(rule, ANDMask | SANDMask) and not rule.unanimous:
        begins = f"{configuration.method} weighs the domains' votes on every weight, and some have "
        begins += "none on"
        ends = "; choose --classes common, or another rule"
    elif configuration.label_smoothing:
        begins, ends = "label smoothing would raise", "; choose --classes common, or leave it out"
    elif configuration.batches == "single":
        begins, ends = "batches single is for domains with the same classes, found", ""
    else:
        return  # of hundreds of domains the gaps are many, and a sweep asks for each of its runs
    sources = set(configuration.sources(domains))
    found = [(domain, label) for domain, label in gaps if domain in sources]
    lacked = Counter(label for _, label in found)
    for domain, label in found:
        if lacked[label] < len(sources):
            raise ArgumentError(f"{begins} class {label}, which domain {domain} lacks{ends}")


def _rows_of_classes(backbone: Backbone, classes: int) -> list[str]:
    """The parameters of the last layer, which have a row for each class, by name."""
    named = list(backbone.model.named_parameters())
    last = tuple(f"{path}." for path in backbone.heads)
    found = [(name, parameter) for name, parameter in named if name.startswith(last)]
    fit = all(parameter.ndim and len(parameter) == classes for _, parameter in found)
    return [name for name, _ in found] if fit else []


def check_weights(configuration: RunConfiguration, algorithm: Algorithm) -> None:
    """Raise `ArgumentError` where options on classes mean nothing with the method."""
    c = configuration
    objective = getattr(algorithm, "objective", None)
    weighs = isinstance(algorithm, Fish | MLDG) or getattr(objective, "weighs_classes", False)
    if c.class_weights != "none" and not weighs:
        raise ArgumentError(
            f"{c.method} has losses that weights of the classes do not reach; leave class_weights "
            "out, or balance the batches by --balance classes"
        )
    if c.balance != "none" and c.batches == "single":
        raise ArgumentError("batches single draws images as they come; leave balance out")


def balanced_weights(counts: np.ndarray) -> Tensor:
    """w_c = n / (K n_c) of the K classes that have images, 1 for the others.

    Source: King & Zeng, "Logistic Regression in Rare Events Data", 2001; as `class_weight` of
    scikit-learn.
    """
    there = counts > 0
    weights = np.ones(len(counts))
    weights[there] = counts.sum() / (there.sum() * counts[there])
    return torch.from_numpy(weights.astype(np.float32))


def _pictures(count: int) -> str:
    return "a picture is" if count == 1 else f"{count} pictures are"


def check_told_split(configuration: RunConfiguration, source: Source) -> None:
    """Raise an error for a split by a column or by lists that is of no use, before decoding."""
    if percentages(configuration.split) is not None:
        return
    told = configuration.model_copy(update={"drop_duplicates": False})  # its files are not read
    _divided(told, _undecoded(source))


def split_now(
    configuration: RunConfiguration, record: Record, source: Source | ImageSet, digest: str
) -> str:
    """The digest of the split that a finished run would have now, of images with the `digest`.

    No image is decoded; where that would be needed, and of other images, it is the record's. Raises
    `DataError` where the images are too few by now.
    """
    if digest != record.data.digest:
        return record.split.digest
    if not isinstance(source, ImageSet):
        if configuration.drop_duplicates or record.data.skipped:
            return record.split.digest
        source = _undecoded(source)
    return split_of(configuration, source, configuration.seed_of_split).digest


def _undecoded(source: Source) -> ImageSet:
    """The images of a source without their pixels."""
    listing = source.listing
    return ImageSet(
        name=source.name,
        domains=source.domains,
        classes=source.classes,
        images=np.empty((0, 0, 0, 3), dtype=np.uint8),
        identities=listing.identities,
        domain=listing.domain,
        label=listing.label,
        size=0,
        digest="",
        parts=source.parts,
        groups=source.groups,
    )


def _check_split(
    split: Split,
    configuration: RunConfiguration,
    sources: Sequence[str],
    target: str | None,
    images: ImageSet,
) -> None:
    """Every number of the record needs an image at least."""
    sizes, name = split.sizes(), images.name
    place = configuration.split
    shares = percentages(place)
    told = f"the split {place:.200} of {name}"
    more = "3 images or more of a class in every domain"
    if images.groups is not None:
        more = "3 groups or more in every domain, and 2 of each class, for none is divided"
    if all(sizes[domain]["validation"] == 0 for domain in sources):
        lacking = f"{told} has no validation images of the source domains"
        if shares is None:
            lacking += "; name some of those for training as validation (val) instead"
        elif shares[1] == 0:
            lacking += ", which choose the model; give them a percentage above 0, as 70/10/20"
        else:
            lacking = f"{name} is too small: no image is left for validation; have {more}"
        raise DataError(lacking)
    if target is not None and not sizes[target]["test"]:
        cure = "test on all images of the target with --test-on all"
        lacking = f"{told} has no test images of {target}"
        if shares is None:
            lacking += f"; name some, or {cure}"
        elif shares[2] == 0:
            lacking += f"; give them a percentage above 0, as 70/10/20, or {cure}"
        else:
            others = sum(not size["test"] for size in sizes.values()) - 1
            nor = f" (nor of {others} more)" if others else ""
            lacking = f"{name} is too small: no image of {target} is left for testing{nor}; have "
            lacking += f"{more}, or {cure}"
        raise DataError(lacking)
    if untrained := [domain for domain in sources if sizes[domain]["train"] == 0]:
        cure = "mend the split" if shares is None else f"have {more}"
        raise DataError(f"{name}: no image of domain {untrained[0]} is for training; {cure}")
