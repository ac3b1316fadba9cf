"""Features that one process leaves to the next; correct is what a run without them gives."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gradsurgery.data import ImageSet, open_source, prepare
from gradsurgery.data.image_set import folder_lock
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.training import TrainingProgress, features_file, frozen_features, train

Train = Callable[..., tuple[Any, bool]]

pytestmark = pytest.mark.usefixtures("nothing_kept")


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    return prepare(open_source("rotated-digits"), size=12, cache=tmp_path / "cache")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    network = timm.create_model("test_byobnet", pretrained=False, num_classes=10)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


@pytest.fixture
def probed(
    tmp_path: Path,
    images: ImageSet,
    weights: Path,
    configured: Callable[..., RunConfiguration],
    outcome: Any,
) -> Train:
    """Train as a new process would; what came out, and whether the features were computed."""
    runs: list[Path] = []

    def run(
        opened: ImageSet = images,
        report: Callable[[TrainingProgress], None] = lambda _: None,
        **more: Any,
    ) -> tuple[Any, bool]:
        frozen_features._kept.clear()
        stages: set[str] = set()

        def hear(progress: TrainingProgress) -> None:
            if progress.note is None:
                stages.add(progress.stage)
            report(progress)

        given = {"backbone": "test_byobnet", "weights": str(weights), "freeze": "all-but-head"}
        runs.append(tmp_path / str(len(runs)))
        record = train(configured(**{**given, **more}), runs[-1], hear, opened=opened)
        assert record.cost.frozen_features
        return outcome(record, runs[-1]), "features" in stages

    return run


def kept_for(images: ImageSet) -> list[Path]:
    assert images.folder is not None
    return sorted(images.folder.glob("features-*"))


def test_the_next_process_takes_them(probed: Train, images: ImageSet) -> None:
    first, computed = probed()
    assert computed
    assert len(kept_for(images)) == 1
    again, computed = probed()
    assert not computed
    assert again == first
    _, computed = probed(method="agr-sum", seed=3, learning_rate=0.01, target="0")
    assert not computed


def test_random_weights_are_no_one_elses(probed: Train, images: ImageSet) -> None:
    for _ in range(2):
        assert probed(weights="none", batch_norm="frozen")[1]
    assert not kept_for(images)


@pytest.mark.parametrize(
    "what", ["other values", "other shape", "other precision", "other name", "cut", "a folder"]
)
def test_a_file_that_is_not_right_is_made_anew(what: str, probed: Train, images: ImageSet) -> None:
    first, _ = probed()
    (file,) = kept_for(images)
    features = load_file(file)["features"].clone()  # it is a map of the file
    if what == "other values":
        save_file({"features": 1.01 * features}, file)
    elif what == "other shape":
        save_file({"features": features[:-1]}, file)
    elif what == "other precision":
        save_file({"features": features.double()}, file)
    elif what == "other name":
        save_file({"else": features}, file)
    elif what == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.unlink()
        file.mkdir()  # nothing can be written in its place
    assert probed() == (first, True)
    if what != "a folder":
        assert torch.equal(load_file(file)["features"], features)
        assert probed() == (first, False)
    assert images.folder is not None
    assert not list(images.folder.glob(".*"))


@pytest.mark.parametrize("name", ["_processor", "versions_and_device"])
def test_another_computer_or_library_has_its_own(
    name: str, probed: Train, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed()
    monkeypatch.setattr(features_file, name, lambda *_: "another")
    assert probed()[1]
    assert len(kept_for(images)) == 2


def test_those_that_were_not_used_for_longest_go(
    probed: Train, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_file, "MOST_FILES", 2)
    monkeypatch.setattr(features_file, "_processor", lambda: "one")
    probed()
    (one,) = kept_for(images)
    monkeypatch.setattr(features_file, "_processor", lambda: "two")
    probed()
    (two,) = set(kept_for(images)) - {one}
    os.utime(one, (0, 0))
    os.utime(two, (1, 1))
    monkeypatch.setattr(features_file, "_processor", lambda: "one")
    assert not probed()[1]  # which uses the first
    monkeypatch.setattr(features_file, "_processor", lambda: "three")
    probed()
    assert one in (left := kept_for(images))
    assert two not in left
    assert len(left) == 2


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("I/O error: No space left on device"),  # what it says of a full disk
        MemoryError(),
        OSError("read-only"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_where_they_cannot_be_written_the_run_goes_on_with_them(
    error: Exception, probed: Train, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    assert images.folder is not None
    expected, there = probed(), set(images.folder.iterdir())
    (file,) = kept_for(images)
    file.unlink()
    monkeypatch.setattr(features_file, "save_file", refuse)
    assert probed() == expected
    assert set(images.folder.iterdir()) == there - {file}


def test_what_a_killed_process_was_writing_goes(probed: Train, images: ImageSet) -> None:
    expected, _ = probed()
    (file,) = kept_for(images)
    file.unlink()
    (file.parent / f".{file.name}.4194304.tmp").write_bytes(b"half")
    assert probed() == (expected, True)
    assert not list(file.parent.glob(".*"))
    assert kept_for(images) == [file]


def test_the_folder_of_images_that_were_removed_meanwhile_stays_away(
    probed: Train, images: ImageSet
) -> None:
    """As when an image is edited, and another command decodes what is there now."""
    expected, _ = probed()
    for file in kept_for(images):
        file.unlink()

    def remove(progress: TrainingProgress) -> None:
        if progress.stage == "features" and progress.done == progress.total:
            assert images.folder is not None
            shutil.rmtree(images.folder)

    assert probed(report=remove) == (expected, True)
    assert images.folder is not None
    assert not images.folder.exists()


def test_a_copy_of_the_images_with_other_pixels_is_computed(
    probed: Train, images: ImageSet
) -> None:
    """Also where the images that are looked at are the same: those of the target are not."""
    pixels = np.array(images.images)
    target = images.domain == images.domains.index("75")
    pixels[target] = 255 - pixels[target]
    # and without a folder: nothing is kept of it
    changed, anew = (
        replace(images, images=pixels, folder=folder) for folder in (images.folder, None)
    )
    for _ in range(2):  # whichever is first
        found, expected = probed(changed)[0][0]["result"], probed(anew)[0][0]["result"]
        assert found == expected
        original, _ = probed()
        assert original[0]["result"] != found
    assert probed() == (original, False)


def test_who_waits_for_another_process_says_so(probed: Train, images: ImageSet) -> None:
    expected, _ = probed()
    (file,) = kept_for(images)
    assert images.folder is not None
    lock = folder_lock(images.folder.parent, file.stem)
    notes: list[str] = []

    def hear(progress: TrainingProgress) -> None:
        if progress.stage == "features" and progress.note is not None:
            notes.append(progress.note)
            lock.release()

    assert probed(report=hear) == (expected, False)
    assert notes == []
    lock.acquire()
    assert probed(report=hear) == (expected, False)
    (note,) = notes
    assert "another process" in note


def test_what_a_report_of_the_waiting_raises_is_raised(tmp_path: Path) -> None:
    (folder := tmp_path / "images").mkdir()
    file = features_file.FeaturesFile(folder, ("key",), torch.device("cpu"))

    def broken_pipe() -> None:
        raise BrokenPipeError

    with (
        folder_lock(tmp_path, file.path.stem),
        pytest.raises(BrokenPipeError),
        file.in_turn(broken_pipe),
    ):
        pass


def test_a_cache_without_locks_does_without(tmp_path: Path) -> None:
    (folder := tmp_path / "images").mkdir()
    (tmp_path / "locks").write_text("in the way")
    file = features_file.FeaturesFile(folder, ("key",), torch.device("cpu"))
    with file.in_turn():
        assert file.read() is None


SCRIPT = """
import sys
from pathlib import Path
import gradsurgery as gs

stages = set()
gs.train(
    gs.RunConfiguration.model_validate_json(sys.argv[1]),
    Path(sys.argv[2]),
    lambda progress: progress.note or stages.add(progress.stage),
    cache=Path(sys.argv[3]),
)
print("features" in stages)
"""


def test_of_two_processes_one_computes(
    tmp_path: Path, weights: Path, images: ImageSet, configured: Callable[..., RunConfiguration]
) -> None:
    assert images.folder is not None
    network = {"backbone": "test_byobnet", "weights": str(weights), "freeze": "all-but-head"}
    options = configured(**network).model_dump_json()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, options, tmp_path / name, images.folder.parent],
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    said = [process.communicate(timeout=300)[0].strip() for process in processes]
    assert sorted(said) == ["False", "True"]
