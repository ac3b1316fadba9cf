import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from gradsurgery.data import Augmentation
from gradsurgery.seeds import derive_seed

NAMES = ["flip", "crop", "domainbed", "randaugment", "trivialaugment"]


def pictures(count: int = 6, size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_becomes_the_same_whatever_is_beside_it(name) -> None:
    images, positions = pictures(), np.array([5, 9, 2, 7, 0, 1])
    augmentation = Augmentation(name, size=16, seed=4)
    before = torch.get_rng_state()
    together = augmentation(images, positions, 3)
    assert torch.get_rng_state().equal(before)
    for i in reversed(range(6)):
        alone = Augmentation(name, size=16, seed=4)(images[i : i + 1], positions[i : i + 1], 3)
        assert alone[0].equal(together[i])
    assert together.shape == images.shape
    assert together.dtype == torch.uint8


@pytest.mark.parametrize("name", NAMES)
def test_seed_step_and_image_decide(name) -> None:
    """Over 40 images, no two of the three draw alike."""
    images, positions = pictures(1).repeat(40, 1, 1, 1), np.arange(40)
    drawn = [
        Augmentation(name, size=16, seed=seed)(images, at, step)
        for seed, step, at in ((0, 1, positions), (1, 1, positions), (0, 2, positions))
    ]
    assert not any(drawn[0].equal(other) for other in drawn[1:])
    assert len({bytes(image.numpy()) for image in drawn[0]}) > 1


def test_flip_is_torchvisions_and_happens_to_half_of_the_images() -> None:
    images = pictures(1).repeat(400, 1, 1, 1)
    flipped = Augmentation("flip", size=16, seed=0)(images, np.arange(400), 1)
    mirrored = images[0].flip(1)
    count = 0
    for image in flipped:
        assert image.equal(images[0]) or image.equal(mirrored)
        count += image.equal(mirrored)
    assert 160 < count < 240  # 4 standard deviations


def test_domainbeds_is_its_recipe() -> None:
    """The transforms that DomainBed composes, from the seed that the image has."""
    recipe = v2.Compose(
        [
            v2.RandomResizedCrop(16, scale=(0.7, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.3, 0.3, 0.3, 0.3),
            v2.RandomGrayscale(),
        ]
    )
    images = pictures()
    changed = Augmentation("domainbed", size=16, seed=1)(images, np.arange(6), 2)
    for i, image in enumerate(images):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(1, "augment", 2, i))
            expected = recipe(image.permute(2, 0, 1)).permute(1, 2, 0)
        assert changed[i].equal(expected)
    many = Augmentation("domainbed", size=16, seed=1)(
        images[:1].repeat(300, 1, 1, 1), np.arange(300), 1
    )
    grey = sum(bool((image == image[:, :, :1]).all()) for image in many)
    assert 10 < grey < 55  # a tenth of them
    assert functional.get_dimensions(many[0].permute(2, 0, 1)) == [3, 16, 16]
