from unittest import mock

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp, kstest
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from gradsurgery.data import Augmentation
from gradsurgery.data import augmentation as module
from gradsurgery.data.augmentation import Drawn, draw
from gradsurgery.errors import ArgumentError
from gradsurgery.kernels import network
from gradsurgery.seeds import derive_seed

OURS = ["flip", "crop", "domainbed"]
NAMES = [*OURS, "randaugment", "trivialaugment"]


def pictures(count: int = 6, size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)


def smooth(count: int, size: int) -> torch.Tensor:
    """Pictures whose neighbouring pixels are alike, some of them grey, black or white."""
    few = pictures(count, 5).permute(0, 3, 1, 2).float()
    large = torch.nn.functional.interpolate(few, size=(size, size), mode="bilinear")
    images = large.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    images[0], images[1] = 0, 255
    images[2] = images[2, :, :, :1]
    images[3, : size // 2] = 128
    return images


def by_torchvision(image: torch.Tensor, drawn: Drawn, i: int, *, colours: bool) -> torch.Tensor:
    """An image as torchvision changes it one by one, of float32 where it is resized."""
    whole = image.permute(2, 0, 1).float()
    place = (drawn.top[i], drawn.left[i], drawn.height[i], drawn.width[i])
    part = functional.resized_crop(whole, *map(int, place), list(whole.shape[1:]), antialias=True)
    part = part.round().to(torch.uint8)
    if drawn.flip[i]:
        part = functional.horizontal_flip(part)
    changes = (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
        functional.adjust_hue,
    )
    for which in drawn.order[i] if colours else ():
        part = changes[which](part, float(drawn.factors[i, which]))
    if colours and drawn.grey[i]:
        part = functional.rgb_to_grayscale(part, 3)
    return part.permute(1, 2, 0)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_becomes_the_same_whatever_is_beside_it(name) -> None:
    images, positions = pictures(), np.array([5, 9, 2, 7, 0, 1])
    augmentation = Augmentation(name, size=16, seed=4)
    before, unchanged = torch.get_rng_state(), images.clone()
    together = augmentation.at(positions, 3)(images)
    assert torch.get_rng_state().equal(before)
    assert images.equal(unchanged)
    for i in reversed(range(6)):
        alone = Augmentation(name, size=16, seed=4).at(positions[i : i + 1], 3)
        assert alone(images[i : i + 1])[0].equal(together[i])
    assert together.shape == images.shape
    assert together.dtype == torch.uint8
    assert together.is_contiguous()


@pytest.mark.parametrize("name", NAMES)
def test_seed_step_and_image_decide(name) -> None:
    """Over 40 images, no two of the three draw alike."""
    images, positions = pictures(1).repeat(40, 1, 1, 1), np.arange(40)
    drawn = [
        Augmentation(name, size=16, seed=seed).at(at, step)(images)
        for seed, step, at in ((0, 1, positions), (1, 1, positions), (0, 2, positions))
    ]
    assert not any(drawn[0].equal(other) for other in drawn[1:])
    assert len({bytes(image.numpy()) for image in drawn[0]}) > 1


def test_a_mirrored_image_is_mirrored_and_half_of_them_are() -> None:
    images = pictures(1).repeat(400, 1, 1, 1)
    flipped = Augmentation("flip", size=16, seed=0).at(np.arange(400), 1)(images)
    mirrored = images[0].flip(1)
    count = 0
    for image in flipped:
        assert image.equal(images[0]) or image.equal(mirrored)
        count += image.equal(mirrored)
    assert 160 < count < 240  # 4 standard deviations


@pytest.mark.parametrize(("size", "count"), [(1, 6), (2, 6), (31, 80), (64, 30), (300, 4)])
@pytest.mark.parametrize("name", OURS[1:])
def test_pixels_are_torchvisions(name, size, count) -> None:
    """But where a number is within a rounding error of the next whole one, of which a later change

    may make two or three.
    """
    images = smooth(count, size)
    changed = Augmentation(name, size=size, seed=1).at(np.arange(count), 2)(images)
    drawn = draw([derive_seed(1, "augment", 2, i) for i in range(count)], size)
    expected = torch.stack(
        [by_torchvision(x, drawn, i, colours=name == "domainbed") for i, x in enumerate(images)]
    )
    apart = (changed.int() - expected.int()).abs()
    assert (apart > 0).float().mean() < 4e-3
    assert (apart > 1).float().mean() < 4e-4


@given(
    st.sampled_from(OURS),
    st.integers(1, 40),
    st.integers(0, 9),
    st.integers(0, 2**40),
    st.integers(0, 3),
)
def test_bits_are_those_of_torchs_operations(name, size, count, seed, threads) -> None:
    """The compiled loop against the twin that accelerators use."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, size, size, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    if seed % 2:  # few values: many pixels that are grey or have two equal channels
        images = images // 128 * 255
    changing = Augmentation(name, size=size, seed=seed).at(np.arange(count), 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        with mock.patch.object(module, "_LEAST", 1):
            compiled = changing(images)
        lying = images.transpose(1, 2).contiguous().transpose(1, 2)  # other strides
        strided = changing(lying)
        with mock.patch.object(network, "ONE_BY_ONE", set()):
            accelerated = changing(images)
        with mock.patch.object(module, "library", return_value=None):
            uncompiled = changing(images)
    finally:
        torch.set_num_threads(before)
    assert compiled.equal(accelerated)
    assert uncompiled.equal(accelerated)
    assert size == 1 or count == 0 or not lying.is_contiguous()
    assert strided.equal(accelerated)


def test_each_change_alone_is_torchvisions() -> None:
    """Of one change at a time, no difference adds up."""
    images = smooth(40, 32).permute(0, 3, 1, 2)
    factors = torch.rand(40, generator=torch.Generator().manual_seed(0))
    for which, change in enumerate(module._CHANGES):
        used = factors * 0.6 + 0.7 if which < 3 else factors * 0.6 - 0.3
        found = change(images.float(), used.view(-1, 1, 1, 1))
        name = ("brightness", "contrast", "saturation", "hue")[which]
        adjust = getattr(functional, f"adjust_{name}")
        expected = torch.stack([adjust(x, float(f)) for x, f in zip(images, used, strict=True)])
        apart = (found - expected.float()).abs()
        assert apart.max() <= 1, name
        assert (apart > 0).float().mean() < 2e-4, name
    grey = module._grey(images.float()).expand_as(images)
    assert (grey - functional.rgb_to_grayscale(images, 3)).abs().max() <= 1


@pytest.mark.parametrize("sixths", [0, 1, -1, 1.8, -1.8, 0.5])
def test_a_hue_is_turned_across_every_border_as_torchvisions(sixths: float) -> None:
    """Of all colours with two equal channels, and of others all round the circle."""
    numbers = torch.arange(256)
    low, high = (each.flatten() for each in torch.meshgrid(numbers, numbers, indexing="ij"))
    borders = [torch.stack(each) for each in ((low, low, high), (low, high, low), (high, low, low))]
    some = torch.arange(0, 2**24, 257)
    others = torch.stack([some >> 16, (some >> 8) & 255, some & 255])
    colours = torch.cat([*borders, others], 1).to(torch.uint8).view(1, 3, 1, -1)
    found = module._turned(colours.float(), torch.tensor(sixths / 6))
    apart = (found - functional.adjust_hue(colours, sixths / 6).float()).abs()
    assert apart.max() <= 1
    assert (apart > 0).float().mean() < 5e-4


def test_what_is_drawn_is_distributed_as_torchvision_draws_it() -> None:
    size, count = 224, 4000
    drawn = draw(range(count), size)
    crop = v2.RandomResizedCrop(size, scale=(0.7, 1.0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        image = torch.zeros(3, size, size)
        theirs = [crop.make_params([image]) for _ in range(count)]
    for name in ("top", "left", "height", "width"):
        other = [each[name] for each in theirs]
        assert ks_2samp(getattr(drawn, name), other).pvalue > 1e-3, name
    for side, begin in ((drawn.height, drawn.top), (drawn.width, drawn.left)):
        assert side.min() > 0
        assert side.max() <= size
        assert begin.min() >= 0
        assert (begin + side).max() <= size
    low, high = np.array([0.7, 0.7, 0.7, -0.3]), np.array([1.3, 1.3, 1.3, 0.3])
    for column in ((drawn.factors - low) / (high - low)).T:
        assert kstest(column, "uniform").pvalue > 1e-3
    assert (np.sort(drawn.order, axis=1) == np.arange(4)).all()
    _, times = np.unique(drawn.order, axis=0, return_counts=True)
    assert len(times) == 24
    assert (abs(times - count / 24) < 5 * (count / 24) ** 0.5).all()
    assert abs(drawn.flip.mean() - 0.5) < 0.04  # 5 standard deviations
    assert abs(drawn.grey.mean() - 0.1) < 0.025


def test_what_is_drawn_of_an_image_is_independent() -> None:
    drawn = draw(range(4000), 224)
    columns = [drawn.height * drawn.width, drawn.flip, *drawn.factors.T, drawn.grey]
    columns += [*drawn.order.T[:3], (drawn.top + 0.5) / (225 - drawn.height)]
    columns += [(drawn.left + 0.5) / (225 - drawn.width)]
    found = np.corrcoef(np.stack([np.asarray(column, float) for column in columns]))
    found[7:10, 7:10] = 0  # places in one order exclude each other
    np.fill_diagonal(found, 0)
    assert abs(found).max() < 5 / 4000**0.5


def test_domainbeds_is_its_recipe() -> None:
    """The transforms that DomainBed composes: mean and spread of a pixel over many draws."""
    recipe = v2.Compose(
        [
            v2.RandomResizedCrop(24, scale=(0.7, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.3, 0.3, 0.3, 0.3),
            v2.RandomGrayscale(),
        ]
    )
    image = smooth(6, 24)[5]
    many = Augmentation("domainbed", size=24, seed=1).at(np.arange(1500), 1)
    ours = many(image.repeat(1500, 1, 1, 1)).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        theirs = torch.stack([recipe(image.permute(2, 0, 1)) for _ in range(1500)])
    theirs = theirs.permute(0, 2, 3, 1).float()
    spread = theirs.std(0)
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 5 * spread * (2 / 1500) ** 0.5 + 0.1).all()
    assert ((ours.std(0) / spread - 1).abs() < 0.2).all()


def test_no_image_is_no_image() -> None:
    empty = torch.zeros(0, 8, 8, 3, dtype=torch.uint8)
    for name in NAMES:
        assert Augmentation(name, size=8, seed=0).at(np.arange(0), 1)(empty).shape == empty.shape


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(5, 33, 33, 3, dtype=torch.uint8),
        torch.zeros(97, 33, 20, 3, dtype=torch.uint8),
        torch.zeros(97, 33, 33, 1, dtype=torch.uint8),
        torch.zeros(97, 33, 33, 3, dtype=torch.int16),
    ],
    ids=["fewer", "oblong", "grey", "numbers"],
)
def test_other_images_than_those_that_were_drawn_for_are_refused(name, pixels) -> None:
    changing = Augmentation(name, size=33, seed=1).at(np.arange(97), 1)
    with pytest.raises((ArgumentError, jaxtyping.TypeCheckError), match=r"97|annotation"):
        changing(pixels)
