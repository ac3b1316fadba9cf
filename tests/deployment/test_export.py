"""Exports are run in their own runtime, here once more, against the formula of their input."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gradsurgery as gs
from gradsurgery.backbones import SmallCNN
from gradsurgery.deployment import export
from gradsurgery.deployment.export import export_model
from gradsurgery.errors import ArgumentError


@pytest.fixture(scope="module")
def model(trained) -> gs.TrainedModel:
    return gs.load_model(trained.folder)


def run(path: Path, images: np.ndarray) -> np.ndarray:
    if path.suffix == ".onnx":
        import onnxruntime

        return onnxruntime.InferenceSession(path).run(["logits"], {"images": images})[0]
    given = torch.from_numpy(images)
    with torch.no_grad():
        if path.suffix == ".pt2":
            return torch.export.load(path).module()(given).numpy()
        return torch.jit.load(path)(given).numpy()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize(
    ("form", "name"),
    [("onnx", "a.onnx"), ("torch-export", "a.pt2"), ("torchscript", "a.pt")],
)
def test_every_format_says_what_the_model_says_of_any_number(trained, model, form, name, tmp_path):
    files = trained.files("test", "shop_d") + trained.files("train", "shop_a")
    pixels = np.stack([model.preprocess.pixels(file) for file in files])
    expected = model.predict(files).probabilities
    for normalization, images in (
        ("inside", pixels),
        ("beside", torch.stack([model.preprocess(file) for file in files]).numpy()),
    ):
        path = tmp_path / normalization / name
        assert export_model(model, str(path), form, normalization) <= 1e-4
        for count in (1, 3, len(files)):
            logits = torch.from_numpy(run(path, images[:count]))
            assert np.allclose(logits.softmax(1), expected[:count], atol=1e-5)
        about = json.loads(path.with_name(f"{name}.json").read_text())
        assert about["classes"] == ["bird", "cat", "dog"]
        assert about["normalization"] == normalization
        if form == "onnx":  # which has it inside too
            import onnx

            inside = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
            assert json.loads(inside["gradsurgery"])["classes"] == ["bird", "cat", "dog"]


class Unsupported(SmallCNN):
    def forward(self, images):
        return torch.linalg.eigvals(super().forward(images)[:, :, None] @ torch.ones(1, 3)).real


class OfTwo(SmallCNN):
    def forward(self, images):
        return super().forward(images) * (2 if len(images) == 2 else 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("form", ["onnx", "torch-export", "torchscript"])
@pytest.mark.parametrize("normalization", ["inside", "beside"])
def test_another_default_device_changes_nothing(model, form, normalization, tmp_path):
    with torch.device("meta"):
        difference = export_model(model, tmp_path / "model", form, normalization)
    assert difference <= 1e-4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("network", "form", "words"),
    [
        (Unsupported, "onnx", "cannot be exported as onnx"),
        (OfTwo, "torch-export", "cannot be exported as torch-export"),
        (OfTwo, "torchscript", "says otherwise than the model"),
    ],
)
def test_what_a_format_lacks_is_one_line_and_leaves_nothing(
    trained, network: type[nn.Module], form, words, tmp_path
):
    model = gs.load_model(trained.folder, backbone=network)
    with pytest.raises(ArgumentError, match=words) as caught:
        export_model(model, tmp_path / "model", form)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_runtime_that_says_otherwise_is_found_out(model, tmp_path, monkeypatch):
    def wrong(network, example, path, model):
        path.touch()
        return lambda images: network(images).detach().numpy() + 3e-4

    monkeypatch.setitem(export._EXPORTERS, "onnx", wrong)
    with pytest.raises(ArgumentError, match=r"logits differ by 0\.0003"):
        export_model(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_packages_that_are_not_there_are_named(model, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(gs.GradsurgeryError, match=r'pip install "gradsurgery\[export\]"'):
        export_model(model, tmp_path / "model.onnx")


FULL = """
import resource, signal, sys, warnings
from pathlib import Path
import gradsurgery as gs
from gradsurgery.deployment.export import export_model
warnings.simplefilter("ignore")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model = gs.load_model(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # a larger file cannot be written
try:
    export_model(model, Path(sys.argv[2]), sys.argv[3])
except gs.errors.OutputError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("form", "name"),
    [("onnx", "a.onnx"), ("torch-export", "a.pt2"), ("torchscript", "a.pt")],
)
def test_a_file_that_cannot_be_written_is_one_line_and_none(trained, form, name, tmp_path):
    path = tmp_path / name
    found = subprocess.run(
        [sys.executable, "-c", FULL, str(trained.folder), str(path), form],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stdout) == (
        0,
        f"cannot write {path}: {os.strerror(errno.EFBIG)}; choose another place\n",
    ), found.stderr
    assert list(tmp_path.iterdir()) == []
