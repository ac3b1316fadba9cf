from collections import Counter

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from gradsurgery.data import open_source, prepare


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def indices(images) -> list[int]:
    """Which of scikit-learn's digits each image is."""
    return [int(identity.rsplit("/", 1)[1]) for identity in images.identities]


@pytest.mark.parametrize("name", ["rotated-digits", "colored-digits"])
def test_every_digit_is_in_one_domain(name, cache):
    images = prepare(open_source(name), 28, cache)
    assert sorted(indices(images)) == list(range(1797))
    sizes = np.bincount(images.domain)
    assert len(sizes) == len(images.domains)
    assert sizes.max() - sizes.min() <= 1
    assert images.images.shape == (1797, 28, 28, 3)


def test_rotated_labels_are_the_digits(cache):
    images = prepare(open_source("rotated-digits"), 28, cache)
    assert images.domains == ("0", "15", "30", "45", "60", "75")
    assert images.classes == tuple("0123456789")
    assert np.array_equal(images.label, load_digits().target[indices(images)])


def test_upright_digits_look_like_scikit_learns(cache):
    images = prepare(open_source("rotated-digits"), 32, cache)
    upright = np.flatnonzero(images.domain == 0)
    original = load_digits().images[np.array(indices(images))[upright]]
    seen = images.images[upright, :, :, 0].astype(float)
    for a, b in zip(seen, original, strict=True):
        inner = Image.fromarray(a[5:27, 5:27]).resize((8, 8), Image.Resampling.BOX)
        assert np.corrcoef(np.asarray(inner).ravel(), b.ravel())[0, 1] > 0.8


def test_turned_back_digits_are_nearer_to_upright_ones(cache):
    images = prepare(open_source("rotated-digits"), 32, cache)
    mean = images.images[(images.domain == 0) & (images.label == 1)][..., 0].mean(axis=0)
    for d, angle in enumerate(images.domains[2:], start=2):
        turned = images.images[(images.domain == d) & (images.label == 1)][..., 0].mean(axis=0)
        back = np.asarray(Image.fromarray(turned.astype(np.uint8)).rotate(-int(angle)))
        away = np.asarray(Image.fromarray(turned.astype(np.uint8)).rotate(int(angle)))
        assert np.abs(back - mean).mean() < np.abs(away - mean).mean()


def test_colours_and_labels_agree_as_often_as_named(cache):
    images = prepare(open_source("colored-digits"), 28, cache)
    assert images.domains == ("+90%", "+80%", "+70%", "-90%")
    channels = images.images.reshape(len(images.images), -1, 3).any(axis=1)
    assert not channels[:, 2].any()
    assert (channels[:, 0] != channels[:, 1]).all()
    red = channels[:, 0]
    big = load_digits().target[indices(images)] >= 5
    flipped = images.label != big
    within(flipped.mean(), 0.25, len(flipped))
    for d, agreement in enumerate([0.9, 0.8, 0.7, 0.1]):
        here = images.domain == d
        within((red == images.label)[here].mean(), agreement, here.sum())
        within(flipped[here].mean(), 0.25, here.sum())


def within(share: float, probability: float, count: int) -> None:
    """Assert that a share lies within four standard deviations of a binomial's mean."""
    assert abs(share - probability) < 4 * np.sqrt(probability * (1 - probability) / count)


def test_sources_are_the_same_each_time():
    first, second = (open_source("colored-digits") for _ in range(2))
    assert first.listing.identities == second.listing.identities
    assert list(first.contents()) == list(second.contents())
    assert Counter(first.listing.label.tolist()) == Counter(second.listing.label.tolist())
    assert first.signature() != open_source("rotated-digits").signature()
