"""Images on a GPU: the processor's bits, and nobody waits for anybody."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradsurgery.data import Augmentation, ImageSet, loader, normalize, open_source, prepare
from gradsurgery.data.loader import ResidentLoader, ResidentSets, StreamingLoader, prefetched
from gradsurgery.data.pixels import gather
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.record import Record
from gradsurgery.engine import lanes
from gradsurgery.training import cuda_graph, train
from tests.gpu import nobody_waits

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GPU = torch.device("cuda")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    cache = tmp_path_factory.mktemp("cache")
    return prepare(open_source("rotated-digits"), size=24, cache=cache)


def loader_of(kind: str, images: ImageSet, *, channels_last: bool) -> Any:
    if kind == "streaming":
        return StreamingLoader(images, MEAN, STD, GPU, channels_last=channels_last)
    resident = ResidentSets(lambda _: 10**12).get(images, GPU)
    assert resident is not None
    return ResidentLoader(images, MEAN, STD, GPU, channels_last=channels_last, resident=resident)


def test_no_loader_of_many_copies_on_the_stream_of_a_graph(images: ImageSet) -> None:
    recorded_on = cuda_graph._recording_stream(torch.cuda.current_device())
    beside = lanes._streams_of(torch.empty(0, device=GPU).device)
    made = [loader_of("streaming", images, channels_last=True) for _ in range(40)]
    used = {each._stream.cuda_stream for each in made}
    assert used.isdisjoint(stream.cuda_stream for stream in [recorded_on, *beside])


@pytest.mark.parametrize("name", ["flip", "crop", "domainbed"])
def test_images_changed_at_random_have_the_processors_bits(name: str, images: ImageSet) -> None:
    made, positions = loader_of("resident", images, channels_last=True), np.arange(200)
    changing = Augmentation(name, size=24, seed=1).at(positions, 2)
    fetched = made.fetch(positions, changing)
    fetched()  # what is loaded at first may wait
    with nobody_waits():
        found, _ = made.fetch(positions, changing)()
    expected = normalize(changing(gather(images.images, positions)), MEAN, STD)
    assert found.cpu().equal(expected)


@pytest.mark.parametrize("kind", ["resident", "streaming"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("triton", [False, True])
def test_a_gpu_has_the_bits_of_the_processor_and_waits_for_none(
    kind: str,
    channels_last: bool,
    triton: bool,
    images: ImageSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not triton:
        monkeypatch.setattr("gradsurgery.kernels.network.has_triton", lambda: False)
    made = loader_of(kind, images, channels_last=channels_last)
    random = np.random.default_rng(0)
    drawn = [random.integers(0, len(images.label), 96) for _ in range(12)]
    made.fetch(drawn[0])()  # compiles the kernel
    torch.cuda.synchronize()
    found = []
    with nobody_waits():
        for _, fetched in prefetched(lambda i: made.fetch(drawn[i]), 1, len(drawn)):
            found.append(fetched())
            torch.ones(4096, 4096, device=GPU).mm(torch.ones(4096, 4096, device=GPU))
    for (numbers, labels), positions in zip(found, drawn, strict=True):
        expected = normalize(torch.from_numpy(images.images[positions]), MEAN, STD)
        assert torch.equal(numbers.cpu(), expected)
        assert labels.tolist() == images.label[positions].tolist()


def test_sets_are_kept_within_their_share(images: ImageSet) -> None:
    before = torch.cuda.memory_allocated()
    first = loader.RESIDENT.get(images, GPU)
    assert first is not None
    assert loader.RESIDENT.get(images, GPU) is first
    assert torch.equal(first.pixels.cpu(), torch.from_numpy(np.array(images.images)))
    assert torch.cuda.memory_allocated() - before < 1.1 * images.images.nbytes + 2**20
    assert ResidentSets(lambda _: images.images.nbytes).get(images, GPU) is None


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one CUDA device")
def test_a_device_without_a_number_is_the_current_one(images: ImageSet) -> None:
    for number in (0, 1, 0):
        with torch.cuda.device(number):
            found = loader.RESIDENT.get(images, GPU)
            assert found is not None
            assert found.pixels.device.index == number


def test_true_float32_is_that_of_the_processor(tmp_path: Path, images: ImageSet) -> None:
    """After one step of SGD the loss differs by float32's rounding, in TF32 by more."""
    found: dict[str, Record] = {}
    for name, options in {
        "cpu": {"device": "cpu"},
        "float32": {"device": "cuda", "precision": "ieee"},
        "tf32": {"device": "cuda", "precision": "tf32"},
    }.items():
        configuration = RunConfiguration(
            data="rotated-digits", target="75", method="deep-all", image_size=24, iterations=1,
            batch_size=32, validate_every=1, optimizer="sgd", **options,
        )  # fmt: skip
        found[name] = train(configuration, tmp_path / name, opened=images)
    expected, exact, rough = (
        found[name].curves.validation_loss[0] or 0.0 for name in ("cpu", "float32", "tf32")
    )
    assert exact == pytest.approx(expected, rel=2e-6)
    assert abs(rough - expected) > abs(exact - expected)
