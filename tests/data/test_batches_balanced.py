"""Batches in which the classes of a domain are drawn equally often."""

from collections import Counter

import numpy as np
import pytest

from gradsurgery.data import DomainBatches, SingleDomainBatches
from gradsurgery.errors import ArgumentError


def test_balanced_batches_have_as_many_of_each_class(make_images):
    images = make_images({"a": [30, 3, 7], "b": [5, 0, 9]})
    indices = {d: np.flatnonzero(images.domain == k) for k, d in enumerate(images.domains)}
    batches = DomainBatches(
        images, indices, domains=["a", "b"], batch_size=8, seed=1, balanced=True
    )
    dealt = [batches.indices_at(step) for step in range(30)]
    for of_a, of_b in dealt:
        assert sorted(Counter(images.label[of_a].tolist()).values()) == [2, 3, 3]
        assert Counter(images.label[of_b].tolist()) == {0: 4, 2: 4}
    drawn = np.concatenate([of_a for of_a, _ in dealt])  # 240: 80 of each class
    for label, members in ((0, 30), (1, 3), (2, 7)):
        times = Counter(drawn[images.label[drawn] == label].tolist())
        assert len(times) == members
        assert max(times.values()) - min(times.values()) <= 1
    again = DomainBatches(images, indices, domains=["b"], batch_size=8, seed=1, balanced=True)
    assert np.array_equal(again.indices_at(17)[0], dealt[17][1])  # whatever the other domains


def test_batches_of_a_single_domain_are_not_balanced(make_images):
    images = make_images({"a": [3], "b": [3]})
    batches = DomainBatches(
        images, {"a": np.arange(3)}, domains=["a"], batch_size=2, seed=0, balanced=True
    )
    with pytest.raises(ArgumentError, match="not balanced"):
        SingleDomainBatches(batches)
