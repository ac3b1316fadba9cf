"""Endless batches of every domain: which images they are."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray

from gradsurgery.data.image_set import ImageSet
from gradsurgery.errors import ArgumentError
from gradsurgery.seeds import named_generator, random_order

_Group = tuple[tuple[str, ...], NDArray[np.int64]]
"""The names that its orders are drawn by, and the positions of its images."""


class DomainBatches:
    """Endless batches of each domain's images, without replacement within an epoch.

    Domain d's images are put in a random order, epoch after epoch, and dealt out in batches that
    run on from one epoch into the next: a domain smaller than the batch works. The order depends
    on (seed, domain, epoch) alone, hence not on the other domains.

    indices: per domain, positions in `images`.
    domains: whose batches to draw, in this order.
    batch_size: images per domain, at least 1.
    balanced: draw the classes of a domain in turn, each from an order of its own that depends on
        (seed, domain, class, epoch); a batch then has as many images of each, to within one.
    """

    def __init__(
        self,
        images: ImageSet,
        indices: Mapping[str, NDArray[np.int64]],
        *,
        domains: Sequence[str],
        batch_size: int,
        seed: int,
        balanced: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ArgumentError(f"batch size is {batch_size}, expected at least 1 image")
        for domain in domains:
            if domain not in indices or len(indices[domain]) == 0:
                raise ArgumentError(
                    f"domain {domain} has no images to draw batches from; domains with images: "
                    f"{', '.join(d for d, i in indices.items() if len(i)) or 'none'}"
                )
        self.images = images
        self.domains = tuple(domains)
        self.batch_size = batch_size
        self.seed = seed
        self.balanced = balanced
        self._groups = {d: self._grouped(d, indices[d]) for d in domains}
        self._orders: dict[tuple[str, ...], tuple[int, NDArray[np.int64]]] = {}

    def domains_at(self, step: int) -> tuple[str, ...]:
        """Whose batches they are: one of every domain at any step."""
        return self.domains

    def indices_at(self, step: int) -> Int64[np.ndarray, "domains batch"]:
        """Positions in the image set of each domain's batch at `step`: a function of it alone."""
        if step < 0:
            raise ArgumentError(f"step is {step}, expected 0 or more")
        return np.stack([self._dealt(domain, step) for domain in self.domains])

    def _grouped(self, domain: str, indices: NDArray[np.int64]) -> list[_Group]:
        """What is drawn in turn: all of the domain's images, or those of each class that it has."""
        if not self.balanced:
            return [(("batches", domain), indices)]
        labels = self.images.label[indices]
        return [
            (("balanced batches", domain, self.images.classes[label]), indices[labels == label])
            for label in np.unique(labels)
        ]

    def _dealt(self, domain: str, step: int) -> NDArray[np.int64]:
        groups = self._groups[domain]
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        batch = np.empty(self.batch_size, dtype=np.int64)
        for number, group in enumerate(groups):
            its = np.flatnonzero(places % len(groups) == number)
            turns = places[its] // len(groups)
            count = len(group[1])
            for epoch in sorted(set((turns // count).tolist())):
                inside = turns // count == epoch
                batch[its[inside]] = self._order(group, epoch)[turns[inside] % count]
        return batch

    def order(self, domain: str, epoch: int) -> NDArray[np.int64]:
        """The domain's images in the order of an epoch, where they are not balanced."""
        return self._order(self._groups[domain][0], epoch)

    def _order(self, group: _Group, epoch: int) -> NDArray[np.int64]:
        """The group's images in the order of an epoch; the last one drawn is kept."""
        names, members = group
        known = self._orders.get(names)
        if known is None or known[0] != epoch:
            drawn = random_order(len(members), self.seed, *names, epoch)
            self._orders[names] = known = (epoch, members[drawn])
        return known[1]


class SingleDomainBatches:
    """Batches as many and as large as those of `DomainBatches`, all from one domain at a time.

    At every step one of the D domains is chosen, each with probability 1 / D, and its images in a
    random order are dealt out to the D batches: no image is in two of them as long as the domain
    has D times the batch size; a smaller domain is dealt out again from the start. The choice and
    the order depend on (seed, step) alone. The control of the paper's figure 4.

    batches: those of all domains, which say whose images, how many and from which seed.
    """

    def __init__(self, batches: DomainBatches) -> None:
        if batches.balanced:
            raise ArgumentError("batches of a single domain are drawn as they come, not balanced")
        self._all = batches

    def domains_at(self, step: int) -> tuple[str, ...]:
        """Whose batches they are: the chosen domain's, D times."""
        if step < 0:
            raise ArgumentError(f"step is {step}, expected 0 or more")
        domains = self._all.domains
        generator = named_generator(self._all.seed, "single domain", step)
        chosen = int(torch.randint(len(domains), (), generator=generator, device="cpu"))
        return (domains[chosen],) * len(domains)

    def indices_at(self, step: int) -> Int64[np.ndarray, "domains batch"]:
        """Positions in the image set of the D batches at `step`, of which it is a function."""
        domains = self.domains_at(step)
        order = self._all.order(domains[0], step)
        return np.resize(order, (len(domains), self._all.batch_size))


Batches = DomainBatches | SingleDomainBatches
