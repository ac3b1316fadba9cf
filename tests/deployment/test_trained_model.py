"""A model that is loaded again says what it said in its run, of whatever it is shown."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.datasets import ImageFolder

import gradsurgery as gs
from gradsurgery.backbones import SmallCNN
from gradsurgery.data import open_source, prepare
from gradsurgery.deployment.trained_model import check_count
from gradsurgery.errors import ArgumentError, DataError, WeightsError

MEAN = STD = 0.5


@pytest.fixture(scope="module")
def model(trained) -> gs.TrainedModel:
    return gs.load_model(trained.folder)


def test_a_model_in_the_home_folder(trained, model, monkeypatch):
    monkeypatch.setenv("HOME", str(trained.folder.parent))
    assert gs.load_model(f"~/{trained.folder.name}").file == model.file


def test_its_accuracy_on_the_test_pictures_is_the_record_s(trained, model):
    for domain, recorded in trained.record.result.best.test_accuracy.items():
        files = trained.files("test", domain)
        predicted = model.predict(files).labels
        right = sum(label == file.parent.name for label, file in zip(predicted, files, strict=True))
        assert right / len(files) == recorded
    assert max(trained.record.result.best.test_accuracy.values()) > 0.5  # it has learned something


def test_pictures_are_prepared_as_training_decoded_them(trained, model, tmp_path):
    images = prepare(open_source(str(trained.data)), 16, tmp_path)
    for identity, pixels in zip(images.identities, images.images, strict=True):
        assert np.array_equal(model.preprocess.pixels(trained.data / identity), pixels), identity


def test_probabilities_are_the_softmax_of_the_network_s_logits(trained, model):
    files = trained.files("test", "shop_d")
    network = SmallCNN(3)
    network.load_state_dict(load_file(trained.folder / "model.safetensors"))
    pixels = np.stack([model.preprocess.pixels(file) for file in files])
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - MEAN) / STD
    with torch.no_grad():
        expected = network.eval()(images).double().softmax(1)
    found = model.predict(files)
    assert np.allclose(found.probabilities, expected, atol=1e-6)
    assert found.names == [str(file) for file in files]
    assert found.classes == model.classes == ("bird", "cat", "dog")


def test_every_form_of_a_picture_gives_the_same(trained, model):
    for file in trained.files("train", "shop_a")[:14]:
        expected = model.predict(file).probabilities
        with Image.open(file) as image:
            image.load()
        forms = [str(file), file.read_bytes(), image, [file]]
        if image.mode == "RGB" and file.suffix == ".png":
            rgb = np.array(image)
            forms += [rgb, rgb[None], torch.from_numpy(rgb).permute(2, 0, 1)]
        for form in forms:
            assert np.array_equal(model.predict(form).probabilities, expected), (file, type(form))


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (5, 3), (500, 2)])
def test_a_folder_is_predicted_in_order_whatever_the_batches(trained, model, batch_size, workers):
    files = sorted((trained.data / "shop_a").rglob("*.*"))
    found = model.predict(trained.data / "shop_a", batch_size=batch_size, workers=workers)
    assert found.names == [str(file) for file in files]
    expected = np.concatenate([model.predict(file).probabilities for file in files])
    assert np.allclose(found.probabilities, expected, atol=1e-6)


def test_the_preparation_is_a_transform_of_torchvision(trained, model):
    folder = trained.data / "shop_b"
    data = ImageFolder(folder, transform=model.preprocess, loader=Image.open)
    images = torch.stack([image for image, _ in data])
    with torch.no_grad():
        logits = model.module(images)
    expected = model.predict(folder).probabilities
    assert np.allclose(logits.softmax(1).numpy(), expected, atol=1e-6)


def test_the_best_classes_come_first(trained, model):
    found = model.predict(trained.files("test", "shop_a"))
    for row, best, label in zip(found.probabilities, found.top(2), found.labels, strict=True):
        assert [p for _, p in best] == sorted(map(float, row), reverse=True)[:2]
        assert best[0] == (label, row.max())


def test_what_cannot_be_decoded_is_named(trained, model, tmp_path):
    good = trained.files("test", "shop_a")[0]
    bad = tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:40])
    with pytest.raises(DataError, match=r"cannot decode .*bad\.png: it is"):
        model.predict([good, bad])
    found = model.predict([bad, good, tmp_path / "absent.png"], skip_bad=True)
    assert found.names == [str(good)]
    assert [image.identity for image in found.skipped] == [str(bad), str(tmp_path / "absent.png")]
    assert len(model.predict([bad], skip_bad=True)) == 0


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4, 3)), "float64"),
        (np.zeros((4, 4, 2), np.uint8), r"\[4, 4, 2\]"),
        (np.zeros((0, 4, 3), np.uint8), r"\[0, 4, 3\]"),
        (torch.zeros(5, 4, 3, dtype=torch.uint8), "tensor"),
        (7, "is a int"),
        ([], "no image is given"),
    ],
)
def test_what_is_no_picture_is_refused(model, image, words):
    with pytest.raises(ArgumentError, match=words):
        model.predict(image)


def test_it_says_what_it_was_trained_on(trained, model):
    about = model.about
    assert (about.data, about.target, about.method) == ("photos", "shop_d", "agr-sum")
    assert about.domains == ["shop_a", "shop_b", "shop_c"]
    assert about.step == trained.record.result.best.step


def test_a_model_of_a_source_that_decodes_by_itself_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADSURGERY_CACHE", str(tmp_path / "cache"))
    options = {"iterations": 1, "batch_size": 4, "device": "cpu", "target": "75"}
    gs.train(gs.RunConfiguration(data="rotated-digits", **options), tmp_path / "run")
    model = gs.load_model(tmp_path / "run")
    with pytest.warns(UserWarning, match=r"were decoded by gradsurgery\.data\.digits\.Rotated"):
        model.predict(np.zeros((14, 14, 3), np.uint8))


def test_metadata_is_json_that_says_all_that_prediction_needs(trained):
    from safetensors import safe_open

    with safe_open(trained.folder / "model.safetensors", "pt") as file:
        about = json.loads(file.metadata()["gradsurgery"])
    assert about["version"] == 2
    assert (about["mean"], about["std"]) == ([0.5] * 3, [0.5] * 3)
    assert (about["image_size"], about["resize_first"], about["decoder"]) == (16, None, None)
    assert about["classes"] == ["bird", "cat", "dog"]


def test_a_folder_without_a_model_says_so(tmp_path: Path):
    with pytest.raises(gs.GradsurgeryError, match=r"no model .*the run is not finished"):
        gs.load_model(tmp_path)


@pytest.mark.parametrize("name", ["a" * 300, "long name " * 100])
def test_a_name_that_is_too_long_for_a_file_is_one_short_line(name):
    # Python 3.14 asks no further where there can be no such file
    words = "(File name too long|no such file); give a run's folder"
    with pytest.raises(WeightsError, match=words) as caught:
        gs.load_model(name)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("number", [True, 0, 2.5, "8", None, 10**9])
def test_what_is_no_number_of_pictures_is_refused(number):
    with pytest.raises(ArgumentError, match="batch_size is a whole number from 1 to 10000"):
        check_count("batch_size", number)


def test_a_stream_takes_what_predict_takes_and_reads_it_as_it_comes(trained, model):
    files = trained.files("train", "shop_a")
    files = (files * (40 // len(files) + 1))[:40]
    read = 0

    def arriving():
        nonlocal read
        for read, file in enumerate(files, start=1):
            yield file.read_bytes() if read % 2 else Image.open(file)
        yield b"no picture"

    names, labels, skipped = [], [], []
    for part in model.stream(arriving(), batch_size=2):
        assert read <= len(names) + 3 * 2
        names += part.names
        labels += part.labels
        skipped += part.skipped
    assert names == [f"image {i}" for i in range(40)]
    assert labels == model.predict([file.read_bytes() for file in files]).labels
    assert [each.identity for each in skipped] == ["image 40"]
    assert list(model.stream([])) == []
