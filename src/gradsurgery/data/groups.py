"""Images that stay in one part of a split: how many each part gets, and whole groups of them."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gradsurgery.data.image_set import ImageSet
from gradsurgery.errors import DataError
from gradsurgery.seeds import random_order

PARTS = ("train", "validation", "test")
_ALL = -1  # all classes, as one more
_NEAR = 0.03  # of a domain's images: how far a part may be from its size


def part_sizes(count: int, fractions: tuple[Fraction, ...]) -> list[int]:
    """Divide `count` images by the method of the largest remainder.

    Every part gets floor(count * fraction), what is left goes one each to the largest remainders,
    ties to the earlier part. A class always gets a training image; from three images on every part
    with a fraction above 0 gets at least one, from the largest.
    """
    quotas = [count * fraction for fraction in fractions]
    sizes = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (sizes[i] - quotas[i], i))
    for i in by_remainder[: count - sum(sizes)]:
        sizes[i] += 1
    required = [i for i, f in enumerate(fractions) if f > 0] if count >= 3 else [0][:count]
    for i in required:
        if sizes[i] == 0:
            sizes[sizes.index(max(sizes))] -= 1
            sizes[i] = 1
    return sizes


def cells_of(images: ImageSet, without: frozenset[int]) -> dict[tuple[int, int], list[int]]:
    """The images of each (domain, class) that has any, in the order of their identities."""
    cells: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    pairs = list(zip(images.domain.tolist(), images.label.tolist(), strict=True))
    for i in sorted(set(range(len(pairs))) - without, key=images.identities.__getitem__):
        cells[pairs[i]].append(i)
    return cells


def grouped_parts(
    images: ImageSet, seed: int, fractions: tuple[Fraction, ...], without: frozenset[int]
) -> list[str | None]:
    """The part of every image, the same for all images of a group of a domain.

    without: positions of images that are in no part.

    An image without a group is one by itself. In every domain the groups that hold the largest
    shares of a class are given away first, those alike in an order drawn at random. Let t_pc be how
    many images of class c the part p has by now, q_pc how many `part_sizes` gives it, and N_c how
    many there are: a group goes where it lowers C = Σ_pc (t_pc − q_pc)² / (q_pc N_c) the most. With
    groups of one image each the parts have exactly the sizes q. Large groups may suit every class
    so and leave a part more than 3 % of the images from its size: with D the same of the K
    classes as one, groups are then moved, one at a time, as long as that lowers C + 2 K D. From
    three groups on, no part is empty that is to have images, unless another would lose a class to
    it; training never is.
    """
    parts: list[str | None] = [None] * len(images.identities)
    for d, domain in enumerate(images.domains):
        members = [i for i in (images.domain == d).nonzero()[0].tolist() if i not in without]
        members = sorted(members, key=images.identities.__getitem__)
        groups = _groups(images.groups, members)
        order = random_order(len(groups), seed, "split", domain, "groups").tolist()
        dealt = _Dealt([Counter(images.label[group].tolist()) for group in groups], fractions)
        if groups:
            dealt.give_away(order)
            dealt.move_to_fit(order)
            dealt.fill_empty()
        for group, part in zip(groups, dealt.chosen, strict=True):
            for i in group:
                parts[i] = PARTS[part]
    return parts


class _Dealt:
    """The groups of a domain, dealt out to the parts; C, K and D are those of `grouped_parts`.

    counts: of each group, the number of images of each class.
    chosen: the part of each group.
    """

    def __init__(self, counts: Sequence[Counter[int]], fractions: tuple[Fraction, ...]) -> None:
        self.counts, self.chosen = counts, [0] * len(counts)
        self._total = sum(counts, Counter[int]())
        self._quotas = {c: part_sizes(n, fractions) for c, n in self._total.items()}
        self._quotas[_ALL] = [sum(sizes) for sizes in zip(*self._quotas.values(), strict=True)]
        self._lacking = {c: list(sizes) for c, sizes in self._quotas.items()}

    def _put(self, g: int, part: int, times: int = 1) -> None:
        """Count the group among those of a part; with -1 times, no longer."""
        for c, n in (*self.counts[g].items(), (_ALL, self.counts[g].total())):
            self._lacking[c][part] -= times * n
        self.chosen[g] = part

    def give_away(self, order: Sequence[int]) -> None:
        """Put each group where it lowers C the most, those with the largest shares first."""
        total, quotas, lacking = self._total, self._quotas, self._lacking
        shares = [sum(n / total[c] for c, n in count.items()) for count in self.counts]

        def gain(count: Counter[int], part: int) -> tuple[float, bool, int]:
            lowered = sum(
                n * (2 * lacking[c][part] - n) / (max(quotas[c][part], 1) * total[c])
                for c, n in count.items()
            )
            untrained = any(lacking[c][0] == quotas[c][0] for c in count)
            return lowered, untrained and PARTS[part] == "train", lacking[_ALL][part]

        for g in sorted(order, key=lambda g: -shares[g]):
            self._put(g, max(range(len(PARTS)), key=partial(gain, self.counts[g])))

    def move_to_fit(self, order: Sequence[int]) -> None:
        """While a part is far from its size, move the group that lowers C + 2 K D the most.

        The training part keeps an image of every class that it has.
        """
        total, quotas, lacking = self._total, self._quotas, self._lacking
        weights = {c: 1 / n for c, n in total.items()} | {_ALL: 2 * len(total) / total.total()}

        def rise(g: int, to: int) -> float:
            part, count = self.chosen[g], self.counts[g]
            if part == 0 and any(quotas[c][0] - lacking[c][0] == n for c, n in count.items()):
                return 0.0
            return sum(
                weights[c]
                * (
                    n * (2 * lacking[c][part] + n) / max(quotas[c][part], 1)
                    - n * (2 * lacking[c][to] - n) / max(quotas[c][to], 1)
                )
                for c, n in (*count.items(), (_ALL, count.total()))
            )

        while max(map(abs, lacking[_ALL])) > _NEAR * total.total():
            alike = {(self.chosen[g], *sorted(self.counts[g].items())): g for g in order}
            ways = [
                (g, to)
                for g in alike.values()  # one of each kind
                for to, size in enumerate(quotas[_ALL])
                if to != self.chosen[g] and size
            ]
            best = min(ways, key=lambda way: rise(*way), default=None)
            if best is None or rise(*best) > -1e-9:  # what is less is rounding
                return
            g, to = best
            self._put(g, self.chosen[g], times=-1)
            self._put(g, to)

    def fill_empty(self) -> None:
        """Give a part that has nothing the smallest group of the part with most that can spare one.

        The training part keeps an image of every class that it has, another part a group. Where
        training has nothing, it gets what validation has, or else what the tests have.
        """
        counts, chosen = self.counts, self.chosen
        if 0 not in chosen and len(chosen) < len(PARTS):
            chosen[chosen.index(min(chosen))] = 0
        for part, size in enumerate(self._quotas[_ALL]):
            if part in chosen or not size or len(counts) < len(PARTS):
                continue
            for donor, number in Counter(chosen).most_common():
                spare = [g for g, of in enumerate(chosen) if of == donor and number > 1]
                if PARTS[donor] == "train":
                    images = sum((counts[g] for g in spare), Counter[int]())
                    spare = [g for g in spare if all(images[c] > n for c, n in counts[g].items())]
                if spare:
                    chosen[min(spare, key=lambda g: counts[g].total())] = part
                    break


def check_undivided(images: ImageSet, parts: Sequence[str | None]) -> None:
    """Raise `DataError` where a split of the user's own has a group in two parts."""
    for d, domain in enumerate(images.domains):
        for group in _groups(images.groups, (images.domain == d).nonzero()[0].tolist()):
            first: dict[str, int] = {}
            for i in group:
                if (part := parts[i]) is not None:
                    first.setdefault(part, i)
            if len(first) > 1:
                (one, i), (other, j) = itertools.islice(first.items(), 2)
                raise DataError(
                    f"group {images.groups and images.groups[i]} of {domain} is divided: "
                    f"{images.identities[i]} is a {one} image and {images.identities[j]} a {other} "
                    "image; mend the split, or leave the group out of --layout or --columns"
                )


def shared_groups(named: Iterable[tuple[str, str | None]]) -> list[str]:
    """A sentence on the groups whose name occurs in several domains, if any does.

    named: the domain and the group of each image.

    >>> shared_groups([("a", "p2"), ("a", "p1"), ("b", "p1"), ("b", None)])[0][:42]
    '1 group is in several domains by name, as '
    """
    places: defaultdict[str, set[str]] = defaultdict(set)
    for domain, group in named:
        if group is not None:
            places[group].add(domain)
    several = sorted(group for group, domains in places.items() if len(domains) > 1)
    if not several:
        return []
    are = "group is" if len(several) == 1 else "groups are"
    return [
        f"{len(several):,} {are} in several domains by name, as {several[0]} in "
        f"{' and '.join(sorted(places[several[0]]))}: where those are the same (a patient, say), "
        "a domain that is left out is not unseen."
    ]


def group_numbers(
    groups: Sequence[str | None] | None, domain: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """A number for each image's group of its domain; None where nothing is said of groups."""
    if groups is None:
        return None
    numbers = np.empty(len(domain), dtype=np.int64)
    for d in np.unique(domain).tolist():
        for group in _groups(groups, (domain == d).nonzero()[0].tolist()):
            numbers[group] = group[0]
    return numbers


def _groups(groups: Sequence[str | None] | None, members: Sequence[int]) -> list[list[int]]:
    """The images of one domain that belong together, in the order of their first."""
    found: defaultdict[object, list[int]] = defaultdict(list)
    for i in members:
        name = None if groups is None else groups[i]
        found[i if name is None else name].append(i)
    return list(found.values())
