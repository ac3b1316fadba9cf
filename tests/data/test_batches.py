from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradsurgery.data import DomainBatches, ImageSet
from gradsurgery.errors import ArgumentError


def batches_of(count: int, batch_size: int, seed: int = 0) -> DomainBatches:
    images = ImageSet(
        "made", ("a", "b"), ("c",), np.zeros((count, 1, 1, 3), np.uint8),
        tuple(map(str, range(count))), np.zeros(count, np.int64), np.zeros(count, np.int64), 1, "0",
    )  # fmt: skip
    return DomainBatches(
        images, {"a": np.arange(count)}, domains=["a"], batch_size=batch_size, seed=seed
    )


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5))
def test_each_epoch_is_a_permutation(count, batch_size, seed):
    batches = batches_of(count, batch_size, seed)
    steps = 3 * count // batch_size + 1
    dealt = np.concatenate([batches.indices_at("a", step) for step in range(steps)])
    for epoch in range(len(dealt) // count):
        assert sorted(dealt[epoch * count : (epoch + 1) * count]) == list(range(count))


@given(st.integers(1, 20), st.integers(1, 30), st.lists(st.integers(0, 60), min_size=1))
def test_a_step_is_pure(count, batch_size, steps):
    used = batches_of(count, batch_size)
    for step in steps:
        fresh = batches_of(count, batch_size)
        assert np.array_equal(used.indices_at("a", step), fresh.indices_at("a", step))


def test_epochs_and_seeds_differ():
    batches = batches_of(50, 50)
    assert not np.array_equal(batches.indices_at("a", 0), batches.indices_at("a", 1))
    assert not np.array_equal(
        batches.indices_at("a", 0), batches_of(50, 50, seed=1).indices_at("a", 0)
    )


def test_images_and_labels_are_those_of_the_domain(make_images):
    images = make_images({"art": [3, 4], "photo": [150, 150], "sketch": [1, 1]})
    indices = {d: np.flatnonzero(images.domain == i) for i, d in enumerate(images.domains)}
    batches = DomainBatches(images, indices, domains=["photo", "sketch"], batch_size=5, seed=2)
    for step in (0, 7):
        for (pixels, labels), domain in zip(batches.at(step), batches.domains, strict=True):
            assert pixels.dtype == torch.uint8
            assert pixels.shape == (5, 2, 2, 3)
            assert labels.dtype == torch.int64
            position = (pixels[:, 0, 0, 0].long() + 256 * pixels[:, 0, 0, 1].long()).numpy()
            assert np.isin(position, indices[domain]).all()
            assert np.array_equal(images.label[position], labels.numpy())


def test_a_domain_smaller_than_the_batch_repeats_evenly():
    for step in range(4):
        times = Counter(batches_of(3, 8).indices_at("a", step).tolist())
        assert max(times.values()) - min(times.values()) <= 2
        assert len(times) == 3


def test_a_domains_batches_do_not_depend_on_the_others(make_images):
    images = make_images({"art": [9], "photo": [20], "sketch": [8]})
    indices = {d: np.flatnonzero(images.domain == i) for i, d in enumerate(images.domains)}
    all_three, two = (
        DomainBatches(images, indices, domains=domains, batch_size=4, seed=0).at(9)
        for domains in (["art", "photo", "sketch"], ["sketch", "art"])
    )
    assert torch.equal(all_three[2][0], two[0][0])
    assert torch.equal(all_three[0][0], two[1][0])


def test_batches_are_copies(make_images):
    images = make_images({"art": [9], "photo": [20]})
    batches = DomainBatches(images, {"art": np.arange(9)}, domains=["art"], batch_size=4, seed=0)
    first = batches.at(0)[0][0].clone()
    batches.at(0)[0][0].zero_()
    assert torch.equal(batches.at(0)[0][0], first)


def test_unusable_arguments_are_refused(make_images):
    images = make_images({"art": [9], "photo": [20]})
    indices = {"art": np.arange(9), "photo": np.arange(0)}
    for domain in ("photo", "sketch"):
        with pytest.raises(ArgumentError, match=f"domain {domain} has no images.*: art"):
            DomainBatches(images, indices, domains=["art", domain], batch_size=1, seed=0)
    with pytest.raises(ArgumentError, match="batch size is 0"):
        DomainBatches(images, indices, domains=["art"], batch_size=0, seed=0)
    with pytest.raises(ArgumentError, match="step is -1"):
        DomainBatches(images, indices, domains=["art"], batch_size=1, seed=0).at(-1)
