"""A model file is data: whatever it says, one line or the model comes of it."""

import json
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import gradsurgery as gs
from gradsurgery.backbones import SmallCNN
from gradsurgery.errors import ArgumentError, DataError, GradsurgeryError, WeightsError
from gradsurgery.training.device import peak_memory_bytes, reset_peak_memory

VERSION1 = ("backbone", "classes", "mean", "std", "image_size", "data", "target")
VERSION1 += ("method", "average", "seed", "step")


def described(trained) -> dict:
    content = (trained.folder / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["gradsurgery"])


def written(trained, path: Path, about: dict | None = None, **changed) -> Path:
    about = {**(about or described(trained)), **changed}
    weights = load_file(trained.folder / "model.safetensors")
    save_file(weights, path, {"gradsurgery": json.dumps(about)})
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_a_file_of_version_1_is_read_with_what_the_record_says(trained, path):
    about = {name: value for name, value in described(trained).items() if name in VERSION1}
    written(trained, path, about)
    files = trained.files("test", "shop_d")
    expected = gs.load_model(trained.folder).predict(files)
    model = gs.load_model(path)
    assert (model.predict(files).probabilities == expected.probabilities).all()
    assert model.about.domains is None
    (path.parent / "record.json").write_bytes((trained.folder / "record.json").read_bytes())
    assert gs.load_model(path.parent).about.domains == ["shop_a", "shop_b", "shop_c"]


def test_a_file_of_version_1_of_a_data_set_of_the_paper_is_resized_as_that_was(trained, path):
    about = {name: value for name, value in described(trained).items() if name in VERSION1}
    model = gs.load_model(written(trained, path, about, data="pacs"))
    assert model.preprocess.resize_first == 227
    assert "does not say how its images were resized" in model.notes[0]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"version": 3}, "of version 3, expected 2 or earlier"),
        ({"image_size": 10**9}, "image_size must be less than or equal to 2048"),
        ({"image_size": -1}, "image_size"),
        ({"resize_first": 10**6}, "resize_first"),
        ({"classes": []}, "classes"),
        ({"classes": ["a", "a", "b"]}, "has a name twice"),
        ({"classes": ["a", "b"]}, "does not fit small-cnn"),
        ({"std": [0.5, 0.0, 0.5]}, "std must be above 0"),
        ({"std": [0.5, 0.5]}, "std"),
        ({"mean": ["a", 0, 0]}, "mean"),
        ({"backbone": 7}, "backbone"),
        ({"backbone": "no-such-network"}, "hand its function over"),
        ({"backbone": "os:system"}, "hand its function over"),
        ({"backbone": "timm/hf-hub:someone/something"}, "hand its function over"),
        ({"backbone": "resnet18"}, "does not fit resnet18"),
        ({"precision": "float8"}, "precision"),
    ],
)
def test_what_cannot_be_is_one_line(trained, path, changed, words):
    with pytest.raises((WeightsError, DataError, ArgumentError), match=words) as caught:
        gs.load_model(written(trained, path, **changed))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changed", [{"backbone": "vgg19"}, {"classes": [*map(str, range(90000))]}])
def test_a_network_larger_than_its_weights_is_refused_before_it_takes_memory(
    trained, path, changed
):
    changed = {"backbone": "alexnet", **changed}
    written(trained, path, **changed)
    reset_peak_memory(torch.device("cpu"))
    before = peak_memory_bytes(torch.device("cpu"))
    with pytest.raises(ArgumentError, match="the weights are too few"):
        gs.load_model(path)
    assert peak_memory_bytes(torch.device("cpu")) - before < 400e6  # vgg19 takes 575 MB


@pytest.mark.parametrize("content", [b"", b"x" * 7, b"\xff" * 64, b"PK\x03\x04" * 99])
def test_bytes_of_something_else_are_one_line(path, content):
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="is no whole model file"):
        gs.load_model(path)


def test_a_file_that_was_cut_off_is_one_line(trained, path):
    content = (trained.folder / "model.safetensors").read_bytes()
    for kept in (4, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:kept])
        with pytest.raises(WeightsError, match="is no whole model file"):
            gs.load_model(path)


def test_weights_without_a_description_are_no_model(trained, path):
    save_file(load_file(trained.folder / "model.safetensors"), path)
    with pytest.raises(WeightsError, match="says nothing of its backbone"):
        gs.load_model(path)


def test_weights_that_are_not_finite_predict_nothing(trained, path):
    weights = load_file(trained.folder / "model.safetensors")
    weights["classifier.bias"][1] = float("nan")
    save_file(weights, path, {"gradsurgery": json.dumps(described(trained))})
    with pytest.raises(DataError, match="logits that are not finite"):
        gs.load_model(path).predict(torch.zeros(3, 9, 9, dtype=torch.uint8))


@settings(max_examples=60)
@given(st.data())
def test_a_header_with_any_bytes_changed_gives_one_line_or_a_model(trained, tmp_path_factory, data):
    content = bytearray((trained.folder / "model.safetensors").read_bytes())
    length = struct.unpack("<Q", content[:8])[0]
    place = st.integers(0, 8 + length - 1)
    for position, byte in data.draw(
        st.dictionaries(place, st.integers(0, 255), min_size=1, max_size=3)
    ).items():
        content[position] = byte
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes(content)
    said = ""
    try:
        gs.load_model(path, device="cpu")
    except GradsurgeryError as error:
        said = str(error)
    assert "\n" not in said


class Doubled(SmallCNN):
    """A network of the user's own."""

    def forward(self, images):
        return 2 * super().forward(images)


def own(classes: int) -> nn.Module:
    return Doubled(classes)


@pytest.mark.parametrize("handed", [own, Doubled, Doubled(3), "mine:Doubled"])
def test_a_network_of_one_s_own_is_handed_over(trained, path, handed, monkeypatch):
    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(Doubled=Doubled))
    file = trained.files("test", "shop_d")[0]
    plain = gs.load_model(trained.folder)
    doubled = gs.load_model(written(trained, path, backbone="mine:Net"), backbone=handed)
    pixels = torch.from_numpy(plain.preprocess.pixels(file)[None].copy())
    assert torch.allclose(doubled.logits(pixels), 2 * plain.logits(pixels))


def test_the_file_s_word_imports_nothing(trained, path, tmp_path, monkeypatch):
    (tmp_path / "hostile.py").write_text("raise SystemExit('run')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ArgumentError, match=r"--backbone package\.module:function"):
        gs.load_model(written(trained, path, backbone="hostile:Net"))


def test_an_own_network_that_is_another_is_named(trained, path):
    with pytest.raises(WeightsError, match=r"does not fit .*<lambda>: of 2 keys"):
        gs.load_model(trained.folder, backbone=lambda classes: nn.Sequential(nn.Linear(3, classes)))
    with pytest.raises(WeightsError, match="does not fit Linear: of 2 keys"):
        gs.load_model(trained.folder, backbone=nn.Linear(3, 3))
    with pytest.raises(WeightsError, match="does not fit squeezenet1_0: of"):
        gs.load_model(trained.folder, backbone="squeezenet1_0")
