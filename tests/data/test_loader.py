"""The ways of images to a device; without a GPU, with the processor in its place."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradsurgery.data import ImageSet, loader, normalize
from gradsurgery.data.loader import (
    SHARE,
    HostLoader,
    ResidentLoader,
    ResidentSets,
    StreamingLoader,
    image_loader,
)
from gradsurgery.data.pixels import gather_normalized, lookup_table

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CPU = torch.device("cpu")


def drawn(count: int, height: int, width: int) -> torch.Tensor:
    random = np.random.default_rng(count * height + width)
    return torch.from_numpy(random.integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def image_set(count: int, size: int = 7, digest: str = "a", cache: Path | None = None) -> ImageSet:
    """Of random pixels, as one that lies in the cache where a folder for it is given."""
    pixels, folder = drawn(count, size, size).numpy(), None
    if cache is not None:
        folder = cache / digest
        folder.mkdir(exist_ok=True)
        pixels.tofile(folder / "images.bin")
        pixels = np.memmap(folder / "images.bin", np.uint8, "r", shape=pixels.shape)
    return ImageSet(
        "made", ("a",), ("x", "y"), pixels, tuple(map(str, range(count))),
        np.zeros(count, np.int64), np.arange(count), size, digest, folder=folder,
    )  # fmt: skip


@pytest.fixture(params=["torch", "triton"])
def implementation(request: pytest.FixtureRequest) -> None:
    """Both ways to the same bits."""
    if request.param == "triton":
        request.getfixturevalue("accelerator")


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("channels_last", [False, True])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(st.integers(1, 4), st.integers(1, 30), st.integers(1, 30), st.lists(st.integers(0, 3)))
def test_a_gathered_batch_has_the_bits_of_the_processors(
    channels_last: bool, count: int, height: int, width: int, chosen: list[int]
) -> None:
    images = drawn(count, height, width)
    positions = torch.tensor([i % count for i in chosen], dtype=torch.int64)
    table = torch.from_numpy(lookup_table(MEAN, STD))
    found = gather_normalized(images, positions, table, channels_last=channels_last)
    assert torch.equal(found, normalize(images[positions], MEAN, STD))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert found.is_contiguous(memory_format=layout)


@pytest.mark.usefixtures("implementation")
def test_every_pixel_value_in_more_than_one_block() -> None:
    values = torch.arange(256, dtype=torch.uint8).repeat(8).reshape(1, 32, 64, 1)
    images = torch.cat([values, values.flip(1)]).expand(-1, -1, -1, 3).contiguous()
    table = torch.from_numpy(lookup_table(MEAN, STD))
    for channels_last in (False, True):
        found = gather_normalized(images, torch.tensor([1, 0]), table, channels_last=channels_last)
        assert torch.equal(found, normalize(images.flip(0), MEAN, STD))


def loaders(images: ImageSet) -> list[loader.ImageLoader]:
    resident = ResidentSets(lambda _: 10**9).get(images, CPU)
    assert resident is not None
    return [
        HostLoader(images, MEAN, STD, CPU),
        ResidentLoader(images, MEAN, STD, CPU, channels_last=True, resident=resident),
        StreamingLoader(images, MEAN, STD, CPU, channels_last=True),
    ]


def test_every_loader_gives_the_same_bits_in_the_same_layout() -> None:
    images = image_set(9)
    for each in loaders(images):
        for positions in (np.array([3, 1, 3, 8]), np.arange(9), np.array([0])):
            found, labels = each.fetch(positions)()
            expected = normalize(torch.from_numpy(images.images[positions]), MEAN, STD)
            assert torch.equal(found, expected)
            assert found.stride() == expected.stride()
            assert labels.tolist() == positions.tolist()  # a label is its image's position


def test_batches_are_copies_and_wait_for_one_another() -> None:
    for each in loaders(image_set(9)):
        first, second = (each.fetch(np.array(positions)) for positions in ([1, 2], [3, 4]))
        found, labels = first()
        expected = found.clone()
        found.zero_()
        labels.zero_()
        assert second()[1].tolist() == [3, 4]
        again, labels = each.fetch(np.array([1, 2]))()
        assert torch.equal(again, expected)
        assert labels.tolist() == [1, 2]


def test_a_set_is_copied_once_whatever_the_number_of_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copies: list[str] = []
    copied = loader._copied
    monkeypatch.setattr(
        loader, "_copied", lambda images, on: copies.append(images.digest) or copied(images, on)
    )
    monkeypatch.setattr(loader, "_COPIED", 3 * 147)  # three images of 7 · 7 · 3 bytes at a time
    sets = ResidentSets(lambda _: 10**6)
    images = image_set(10, cache=tmp_path)
    first = sets.get(images, CPU)
    assert first is not None
    assert np.array_equal(first.pixels, images.images)
    assert first.labels.tolist() == list(range(10))
    assert sets.get(image_set(10, cache=tmp_path), CPU) is first  # opened again
    assert sets.get(image_set(10, digest="b", cache=tmp_path), CPU) is not first
    assert copies == ["a", "b"]


def test_a_device_without_a_number_is_the_one_that_it_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "cuda" is another device where another one is the current one."""
    current, empty = ["cpu"], torch.empty

    def on_current(*size: int, device: torch.device) -> torch.Tensor:
        return empty(*size, device=current[0])

    def copied(_: ImageSet, device: torch.device) -> loader.DeviceImages:
        return loader.DeviceImages(
            empty(3, 7, 7, 3, dtype=torch.uint8, device=device),
            empty(3, dtype=torch.int64, device=device),
        )

    monkeypatch.setattr(torch, "empty", on_current)
    monkeypatch.setattr(loader, "_copied", copied)
    sets, images = ResidentSets(lambda _: 10**6), image_set(3, cache=tmp_path)
    first = sets.get(images, CPU)
    assert first is not None
    assert sets.get(images, CPU) is first
    current[0] = "meta"
    other = sets.get(images, CPU)
    assert other is not None
    assert (first.pixels.device.type, other.pixels.device.type) == ("cpu", "meta")


def test_a_set_that_is_not_of_the_cache_is_not_taken_for_another() -> None:
    sets = ResidentSets(lambda _: 10**6)
    one, other = image_set(4), image_set(4)
    other.images[:] = 0
    for images in (one, other, one):
        found = sets.get(images, CPU)
        assert found is not None
        assert torch.equal(found.pixels, torch.from_numpy(images.images))


def test_a_copy_with_other_pixels_or_labels_is_not_taken_for_the_set_itself(tmp_path: Path) -> None:
    sets, images = ResidentSets(lambda _: 10**6), image_set(10, cache=tmp_path)
    pixels, label = images.images, images.label
    changes = [{"images": 255 - pixels}, {"images": pixels[::-1]}, {"label": label[::-1]}]
    for each in [images, *(replace(images, **change) for change in changes), images]:
        found = sets.get(each, CPU)
        assert found is not None
        assert np.array_equal(found.pixels, each.images)
        assert np.array_equal(found.labels, each.label)


def test_the_set_that_was_not_asked_for_the_longest_gives_way(tmp_path: Path) -> None:
    each = 10 * 147  # bytes of ten images of 7 · 7
    memory = round(2 * each / SHARE)  # two sets fit
    held: list[int] = []
    sets = ResidentSets(lambda _: memory - each * len(held))
    made = {name: image_set(10, digest=name, cache=tmp_path) for name in "abc"}
    first = {}
    for name in "ab":
        first[name] = sets.get(made[name], CPU)
        held.append(1)
    assert sets.get(made["a"], CPU) is first["a"]
    assert sets.get(made["c"], CPU) is not None  # b gives way, and its memory is taken again
    assert sets.get(made["a"], CPU) is first["a"]
    assert sets.get(made["b"], CPU) is not first["b"]


def test_a_set_that_does_not_fit_stays_where_it_is(tmp_path: Path) -> None:
    images = image_set(10, cache=tmp_path)
    least = images.images.nbytes / SHARE
    assert ResidentSets(lambda _: round(least) - 5).get(images, CPU) is None
    assert ResidentSets(lambda _: round(least) + 5).get(images, CPU) is not None


def test_a_set_that_another_process_has_taken_the_memory_of_stays_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(loader, "_copied", full)
    assert ResidentSets(lambda _: 10**9).get(image_set(3, cache=tmp_path), CPU) is None


def test_the_loader_is_the_one_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    images = image_set(3)
    made = image_loader(images, MEAN, STD, device=CPU, channels_last=False)
    assert isinstance(made, HostLoader)
    meta = torch.device("meta")  # any accelerator
    for free, kind in ((0, StreamingLoader), (10**9, ResidentLoader)):
        monkeypatch.setattr(loader, "RESIDENT", ResidentSets(lambda _, free=free: free))
        assert isinstance(image_loader(images, MEAN, STD, device=meta, channels_last=False), kind)
