"""95 % intervals of fractions, where images are independent and where they belong to groups."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from gradsurgery.documents.tally import Tally
from gradsurgery.results.statistics import CONFIDENCE

Counts = NDArray[np.int64]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure and the ends of its interval."""

    value: float
    low: float
    high: float


def proportion(right: int, total: int) -> Estimate:
    """A fraction with Wilson's interval (Wilson 1927), which holds for few images too.

    >>> found = proportion(9, 10)
    >>> found.value, round(found.low, 3), round(found.high, 3)
    (0.9, 0.596, 0.982)
    """
    return _wilson(right / total, right, total)


def paired_difference(tally: Tally) -> Estimate:
    """How much larger the second of two models' fractions of right answers is, on the same images.

    Of n images b are right for the second alone and c for the first alone. The interval is that of
    Bonett & Price 2012, p_b − p_c ± z √((p_b + p_c − (p_b − p_c)²) / (n + 2)) with
    p_b = (b + 1) / (n + 2), which holds where b and c are few, too. Of images in groups n is their
    effective number, and b / n and c / n stay.

    tally: of whether the first model has an image right (the row: 0 no, 1 yes), and the second.

    >>> found = paired_difference(Tally(confusion=["0:80 1:16", "0:6 1:59"]))
    >>> round(found.value, 3), round(found.low, 3), round(found.high, 3)
    (0.062, 0.003, 0.119)
    """
    (_, second), (first, _) = tally.matrix().tolist()
    groups = Groups.of(tally)
    images = tally.images if groups is None else groups.images_of_difference()
    share = images / tally.images
    p_second, p_first = ((count * share + 1) / (images + 2) for count in (second, first))
    middle = p_second - p_first
    reach = normal_quantile() * math.sqrt((p_second + p_first - middle**2) / (images + 2))
    value = (second - first) / tally.images
    return Estimate(value, max(-1.0, middle - reach), min(1.0, middle + reach))


class Groups:
    """The images of a tally by what they belong to, and intervals that take account of it.

    Images of one patient are alike: what there are many of, as far as an interval goes, are
    patients. A figure's variance V is the jackknife's, (G − 1) / G Σ (θ_g − θ)², of which θ_g is
    the figure without group g. A fraction p of n images has Wilson's interval on the effective
    number of images p (1 − p) / V, at most n; where p is 0 or 1, and V tells nothing, on that of
    groups, n² / Σ m_g² of m_g images each. For the normal quantile stands Student's, with as many
    degrees of freedom as effective groups less one: of a single group nothing follows.

    Sources: Rao & Scott, "A Simple Method for the Analysis of Clustered Binary Data", 1992; Korn &
    Graubard, "Confidence Intervals for Proportions with Small Expected Number of Positive Counts
    Estimated from Survey Data", 1998 (the quantile); Kish, "Survey Sampling", 1965 (n² / Σ m_g²).
    """

    def __init__(self, tally: Tally) -> None:
        self.group, self.label, self.predicted, self.bin, self.count = tally.cells().T
        self.right = self.label == self.predicted
        self.images = self.summed(self.count)

    @classmethod
    def of(cls, tally: Tally) -> "Groups | None":
        """None where nothing is said of groups, or every image is one by itself."""
        return cls(tally) if tally.in_groups else None

    def proportion(self, hit: NDArray[np.bool_], among: NDArray[np.bool_]) -> Estimate:
        """The fraction of the images in the cells `among` that is in the cells `hit` too."""
        images = self.summed(self.count * among)
        right, there = self.summed(self.count * (among & hit)), images > 0
        right, images = right[there], images[there]
        if (images == 1).all():
            return proportion(int(right.sum()), len(images))
        value = right.sum() / images.sum()
        without = (right.sum() - right) / np.maximum(images.sum() - images, 1)
        return _bounded(float(value), without, images)

    def bounded(self, value: float, without: Values) -> Estimate:
        """A figure of all, from 0 to 1, with Wilson's interval; `without` each group it is so."""
        return _bounded(value, without, self.images)

    def images_of_difference(self) -> float:
        """The effective number of images of a tally for `paired_difference`."""
        more = self.summed(self.count * (self.predicted - self.label))
        total = self.images.sum()
        value = float(more.sum() / total)
        without = (more.sum() - more) / np.maximum(total - self.images, 1)
        apart = float(self.count[self.predicted != self.label].sum() / total)
        return _effective_images(apart - value**2, _jackknife(without, value), self.images)

    def symmetric(self, value: float, without: Values, most: float) -> Estimate:
        """A figure of all with Student's interval, cut off at 0 and `most`."""
        reach = _student_quantile(self.images)
        if reach < math.inf:
            reach *= math.sqrt(_jackknife(without, value))
        return Estimate(value, max(0.0, value - reach), min(most, value + reach))

    def summed(self, counts: Counts) -> Counts:
        """By group."""
        sums = np.bincount(self.group, weights=counts, minlength=int(self.group.max()) + 1)
        return sums.astype(np.int64)


def _jackknife(without: Values, value: float) -> float:
    """The variance of a figure, from what it is without each group; of one group 0."""
    count = len(without)
    return (count - 1) / count * float(((without - value) ** 2).sum()) if count > 1 else 0.0


def _bounded(value: float, without: Values, images: Counts) -> Estimate:
    """A figure from 0 to 1 with Wilson's interval: `without` each group, and `images` of each."""
    effective = _effective_images(value * (1 - value), _jackknife(without, value), images)
    return _wilson(value, value * effective, effective)


def _effective_images(spread: float, variance: float, images: Counts) -> float:
    """As many independent images make an interval as wide.

    spread: the variance of a single image; variance: that of their mean, in groups.
    """
    known = float(images.sum()) if spread > 0 else _effective_groups(images)
    effective = min(known, spread / variance) if variance > 0 else known
    return effective * (normal_quantile() / _student_quantile(images)) ** 2


def _wilson(value: float, right: float | int, total: float | int) -> Estimate:
    z = normal_quantile()
    middle = right + z**2 / 2
    spread = right * (total - right) / total if total else 0.0
    reach = z * math.sqrt(spread + z**2 / 4)
    low = 0.0 if value == 0 else (middle - reach) / (total + z**2)
    high = 1.0 if value == 1 else (middle + reach) / (total + z**2)
    return Estimate(value, low, high)


def _effective_groups(images: Counts) -> float:
    """As many groups of equal size tell as much."""
    return float(images.sum()) ** 2 / float((images**2).sum())


def normal_quantile() -> float:
    """How many standard deviations a confidence interval reaches to either side."""
    return NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


def _student_quantile(images: Counts) -> float:
    """The same where the deviation is estimated from groups of so many images; ∞ for one group."""
    from scipy.special import stdtrit

    freedom = _effective_groups(images) - 1
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) if freedom > 1e-6 else math.inf
