from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradsurgery.data import draw_split
from gradsurgery.data.splits import PARTS, part_sizes
from gradsurgery.documents.record import SplitFile
from gradsurgery.errors import ArgumentError
from gradsurgery.seeds import random_order

PAPER = (Fraction(7, 10), Fraction(1, 10), Fraction(2, 10))


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (0, [0, 0, 0]),
        (1, [1, 0, 0]),
        (2, [2, 0, 0]),  # 1.4, 0.2, 0.4: the tie of remainders goes to training
        (3, [1, 1, 1]),  # largest remainder gives 2, 0, 1; every part gets one
        (5, [3, 1, 1]),  # 3.5, 0.5, 1.0 gives 4, 0, 1; every part gets one
        (8, [6, 1, 1]),  # 5.6, 0.8, 1.6: the tie of 0.6 goes to training
        (9, [6, 1, 2]),  # 6.3, 0.9, 1.8
        (10, [7, 1, 2]),
        (379, [265, 38, 76]),  # 265.3, 37.9, 75.8
    ],
)
def test_sizes_by_largest_remainder(count, sizes):
    assert part_sizes(count, PAPER) == sizes


@given(st.integers(0, 500), st.integers(1, 100), st.integers(0, 100), st.integers(0, 100))
def test_sizes_add_up_and_differ_from_the_quota_by_less_than_one(count, a, b, c):
    fractions = tuple(Fraction(part, a + b + c) for part in (a, b, c))
    sizes = part_sizes(count, fractions)
    assert sum(sizes) == count
    assert min(sizes) >= 0
    assert count == 0 or sizes[0] >= 1
    if count >= 3:
        assert all(size >= 1 for size, f in zip(sizes, fractions, strict=True) if f)
    quotas = [count * f for f in fractions]
    if all(quota >= 1 or quota == 0 for quota in quotas):
        assert all(abs(s - q) < 1 for s, q in zip(sizes, quotas, strict=True))


counts = st.dictionaries(
    st.sampled_from(["art", "photo", "sketch", "x/y"]),
    st.lists(st.integers(1, 30), min_size=2, max_size=2),
    min_size=2,
)


@given(counts, st.integers(0, 10))
def test_parts_partition_every_class_of_every_domain(make_images, numbers, seed):
    images = make_images(numbers)
    split = draw_split(images, seed)
    for d, domain in enumerate(images.domains):
        parts = [getattr(split, part)[domain] for part in PARTS]
        together = np.concatenate(parts)
        assert together.dtype == np.int64
        assert sorted(together) == np.flatnonzero(images.domain == d).tolist()
        for c in range(2):
            sizes = [int((images.label[part] == c).sum()) for part in parts]
            assert sizes == part_sizes(numbers[domain][c], PAPER)


def names(images, split, domain):
    return {p: [images.identities[i] for i in getattr(split, p)[domain]] for p in PARTS}


def test_a_domains_split_depends_on_nothing_else(make_images):
    images = make_images({"art": [9, 14], "photo": [20, 5]})
    split = draw_split(images, 3)
    alone = make_images({"photo": [20, 5], "cartoon": [7, 7]})
    assert names(alone, draw_split(alone, 3), "photo") == names(images, split, "photo")
    order = np.random.default_rng(0).permutation(len(images.identities))
    shuffled = replace(
        images,
        identities=tuple(images.identities[i] for i in order),
        domain=images.domain[order],
        label=images.label[order],
    )
    again = draw_split(shuffled, 3)
    assert names(shuffled, again, "art") == names(images, split, "art")
    assert again.digest == split.digest


def test_seeds_give_different_splits(make_images):
    images = make_images({"art": [20, 20], "photo": [20, 20]})
    assert draw_split(images, 0).digest == draw_split(images, 0).digest
    assert draw_split(images, 0).digest != draw_split(images, 1).digest


def test_a_saved_split_names_its_images(make_images, tmp_path):
    images = make_images({"art": [10, 10], "photo": [10, 10]})
    split = draw_split(images, seed=3)
    split.save(tmp_path)
    file = SplitFile.load(tmp_path)
    assert (file.seed, file.digest) == (3, split.digest)
    for domain, parts in file.domains.items():
        for part, identities in parts.items():
            chosen = getattr(split, part)[domain]
            assert identities == [images.identities[i] for i in chosen]


@pytest.mark.parametrize(
    "fractions",
    [(0.7, 0.1, 0.1), (0.0, 0.5, 0.5), (1.1, -0.1, 0.0), (0.5, 0.5), (float("nan"),) * 3],
)
def test_impossible_fractions_are_refused(make_images, fractions):
    with pytest.raises(ArgumentError, match="fractions are"):
        draw_split(make_images({"art": [9], "photo": [9]}), fractions=fractions)


def test_classes_that_a_domain_lacks_cost_nothing(make_images, monkeypatch):
    """Of D domains and K classes with a few images, no D x K searches of all images."""
    numbers = {f"camera {d}": [5 * (k == d) for k in range(40)] for d in range(40)}
    images, drawn = make_images(numbers), []
    monkeypatch.setattr(
        "gradsurgery.data.splits.random_order",
        lambda *names: drawn.append(names[-2:]) or random_order(*names),
    )
    split = draw_split(images)
    assert sorted(drawn) == sorted((f"camera {d}", images.classes[d]) for d in range(40))
    assert split.sizes()["camera 3"] == {"train": 3, "validation": 1, "test": 1}
