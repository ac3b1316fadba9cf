"""Images on the device: the processor's bits, held there as a whole or streamed."""

import json

import numpy as np
import pytest
import torch

import gradsurgery as gs
from gradsurgery.data import ImageSet, loader
from tests.gpu import DEVICE, needs_gpu

pytestmark = needs_gpu

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def image_set(size: int = 32, count: int = 120) -> ImageSet:
    """Random pixels of three domains and two classes."""
    generator = np.random.default_rng(0)
    domain, label = np.arange(count) % 3, np.arange(count) // 3 % 2
    return ImageSet(
        name="random",
        domains=("a", "b", "c"),
        classes=("x", "y"),
        images=generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8),
        identities=tuple(f"{'abc'[domain[i]]}/{'xy'[label[i]]}/{i}" for i in range(count)),
        domain=domain,
        label=label,
        size=size,
        digest="random",
    )


@pytest.mark.parametrize("share", [0.4, 0.0], ids=["resident", "streamed"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_batches_have_the_bits_of_the_processor(monkeypatch, share, channels_last):
    monkeypatch.setattr(loader, "SHARE", share)
    images, positions = image_set(), np.array([5, 3, 3, 110, 0])
    cpu = torch.device("cpu")
    there = loader.image_loader(images, MEAN, STD, device=DEVICE, channels_last=channels_last)
    here = loader.image_loader(images, MEAN, STD, device=cpu, channels_last=channels_last)
    for _ in range(5):  # more than wait on their way
        pixels, labels = there.fetch(positions)()
        expected, expected_labels = here.fetch(positions)()
        assert pixels.device.type == DEVICE.type
        assert torch.equal(pixels.cpu(), expected)
        assert torch.equal(labels.cpu(), expected_labels)


def test_a_run_is_the_same_whether_images_are_held_or_streamed(monkeypatch, tmp_path):
    records = []
    for share in (0.4, 0.0):
        monkeypatch.setattr(loader, "SHARE", share)
        configuration = gs.RunConfiguration(
            data="random",
            target="c",
            method="agr-sum",
            backbone="small-cnn",
            image_size=32,
            batch_size=8,
            iterations=12,
            validate_every=6,
            learning_rate=1e-3,
            device=DEVICE.type,
        )
        gs.train(configuration, tmp_path / str(share), opened=image_set())
        records.append(json.loads((tmp_path / str(share) / "record.json").read_text()))
    first, second = records
    assert (first["result"], first["curves"]) == (second["result"], second["curves"])
