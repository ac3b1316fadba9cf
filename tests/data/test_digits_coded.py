import numpy as np
import pytest
from scipy.stats import norm
from sklearn.datasets import load_digits

from gradsurgery.data import open_source, prepare
from gradsurgery.data.digits import CodedDigits, CodedDigitsOptions
from gradsurgery.errors import ArgumentError

DIGITS = load_digits()


def source(**options) -> CodedDigits:
    return CodedDigits(CodedDigitsOptions(**options))


def strips(found: CodedDigits):
    """The bits, domain and digit of each image, in the order of scikit-learn's."""
    contents = dict(found.contents())
    bits = np.stack(
        [np.frombuffer(contents[p], np.uint8)[64:][: found.options.bits] for p in found.positions]
    )
    return bits, found.listing.domain[found.positions], DIGITS.target


def test_every_digit_lies_in_one_domain_under_its_own_class():
    found = source(domains=5)
    files = [identity.split("/") for identity in found.listing.identities]
    assert sorted(int(file) for _, _, file in files) == list(range(1797))
    assert all(int(label) == DIGITS.target[int(file)] for _, label, file in files)
    assert found.domains == ("code-1", "code-2", "code-3", "code-4", "code-5", "random")


@pytest.mark.parametrize("domains", [2, 12, 32])
def test_a_third_is_the_targets_and_the_sources_are_alike(domains):
    counts = source(domains=domains).counts()
    assert counts[-1].tolist() == [n // 3 for n in np.bincount(DIGITS.target)]
    sizes = counts[:-1].sum(axis=1)
    assert sizes.max() - sizes.min() <= 1
    assert (counts[:-1].max(axis=0) - counts[:-1].min(axis=0)).max() <= 1
    assert counts.min() >= 3  # one each for training, validation and test


def test_a_domain_spells_each_class_in_its_own_code():
    bits, domain, digit = strips(source(domains=4))
    codes = set()
    for d in range(4):
        for label in range(10):
            spelled = np.unique(bits[(domain == d) & (digit == label)], axis=0)
            assert len(spelled) == 1
            codes.add(spelled.tobytes())
    assert len(codes) == 40


def test_the_targets_bits_say_nothing_of_the_class():
    bits, domain, digit = strips(source(domains=4))
    random, labels = bits[domain == 4], digit[domain == 4]
    assert len(np.unique(random, axis=0)) == len(random)
    # The chance that some class's mean of some bit is further from 1/2 is below 10 * 64 * 6e-7.
    for label in range(10):
        here = random[labels == label]
        assert np.abs(here.mean(axis=0) - 0.5).max() < 5 * 0.5 / np.sqrt(len(here))


@pytest.mark.parametrize("share", [0.0, 0.7])
def test_that_share_of_the_source_images_carries_the_code(share):
    bits, domain, _ = strips(source(domains=4, share=share))
    codes, *_ = strips(source(domains=4))
    sources = domain < 4
    carried = (bits == codes).all(axis=1)[sources].mean()
    assert abs(carried - share) <= 4 * np.sqrt(share * (1 - share) / sources.sum())


def test_codes_do_not_depend_on_how_many_domains_there_are_and_differ_by_seed():
    few, domain, digit = strips(source(domains=2))
    many, other, _ = strips(source(domains=3))
    for label in range(10):
        one = few[(domain == 0) & (digit == label)][0]
        assert np.array_equal(one, many[(other == 0) & (digit == label)][0])
    anew, again, _ = strips(source(domains=2, seed=1))
    assert not np.array_equal(
        few[(domain == 0) & (digit == 0)][0], anew[(again == 0) & (digit == 0)][0]
    )


def test_noise_is_as_strong_as_named():
    clean, noisy = (source(noise=noise)._pixels.astype(float) / 255 for noise in (0.0, 0.3))
    np.testing.assert_allclose(clean, DIGITS.images / 16, atol=0.5 / 255)
    grey = DIGITS.images == 8
    cut_off = norm.expect(lambda z: np.clip(0.3 * z, -0.5, 0.5) ** 2)  # below black, above white
    assert (noisy - clean)[grey].std() == pytest.approx(np.sqrt(cut_off), rel=0.05)
    assert abs((noisy - clean)[grey].mean()) < 0.02


def test_the_digit_is_drawn_above_its_bits(tmp_path):
    found = source(bits=16, noise=0.0)
    images = prepare(found, 32, tmp_path)
    contents = dict(found.contents())
    for position in (0, 700, 1796):
        image = images.images[position]
        assert (image == image[:, :, :1]).all()
        bits = np.frombuffer(contents[position], np.uint8)[64:80].reshape(2, 8)
        assert np.array_equal(image[24:, :, 0], np.kron(bits * 255, np.ones((4, 4))))
        digit = DIGITS.images[int(images.identities[position].rsplit("/", 1)[1])]
        drawn = image[:24, 4:28, 0].reshape(8, 3, 8, 3).mean(axis=(1, 3))
        assert np.corrcoef(drawn.ravel(), digit.ravel())[0, 1] > 0.98
        assert not image[:24, :4].any()
        assert not image[:24, 28:].any()


def test_bits_that_do_not_fill_the_strip_leave_it_black(tmp_path):
    images = prepare(source(bits=3), 16, tmp_path)  # one row of three cells
    strip = images.images[:, 12:, :, 0]
    assert np.isin(strip, (0, 255)).all()
    assert (strip == strip[:, :1]).all()


def test_a_strip_without_room_is_refused_with_the_least_size(tmp_path):
    with pytest.raises(
        ArgumentError, match=r"64 bits has no room in images of 14 .*--image-size 16"
    ):
        prepare(source(), 14, tmp_path)
    assert prepare(source(), 16, tmp_path).images.shape == (1797, 16, 16, 3)


@pytest.mark.parametrize("text", ["domains=8", "domains=8,bits=16,noise=0.25,share=0.5,seed=3"])
def test_the_name_has_the_parameters_and_opens_the_same_set(text):
    found = open_source(f"coded-digits:{text}")
    assert found.name == f"coded-digits:{text}"
    assert list(found.contents()) == list(open_source(found.name).contents())


def test_parameters_at_their_defaults_are_not_in_the_name():
    found = open_source("coded-digits: noise=0.3, share=1, domains=12")
    assert found.name == "coded-digits"
    assert found.signature() == open_source("coded-digits").signature()
    assert found.signature() != open_source("coded-digits:seed=1").signature()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("domains=1", "domains must be greater than or equal to 2"),
        ("domains=33", "less than or equal to 32"),
        ("domains=some", "valid integer"),
        ("noise=nan", "finite"),
        ("share=1.5", "less than or equal to 1"),
        ("colour=red", "unknown parameter of coded-digits 'colour'; there"),
        ("domains", "takes NAME=VALUE"),
        ("domains=4,domains=8", "each once"),
        ("domains=4,", "takes NAME=VALUE"),
    ],
)
def test_other_parameters_are_refused_in_one_line(text, words):
    with pytest.raises(ArgumentError, match=words) as error:
        open_source(f"coded-digits:{text}")
    assert "\n" not in str(error.value)
