"""Two models on the same images, each counted by hand from what `predict` says."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import gradsurgery as gs
from gradsurgery.data import open_source
from gradsurgery.deployment.evaluation import evaluate_model
from gradsurgery.documents.deployment import EvaluationFile
from gradsurgery.errors import ArgumentError
from gradsurgery.training import train
from tests.deployment.conftest import Trained


@pytest.fixture(scope="module")
def other(trained, tmp_path_factory) -> Trained:
    """A run on the same pictures in another size, with another domain held out and split."""
    folder = tmp_path_factory.mktemp("other") / "run"
    options = {"image_size": 11, "resize": "crop", "seed": 1, "target": "shop_a", "iterations": 10}
    configuration = trained.record.configuration.model_copy(update=options)
    return Trained(folder, trained.data, train(configuration, folder, cache=folder.parent))


@pytest.fixture(scope="module")
def models(trained, other) -> tuple[gs.TrainedModel, gs.TrainedModel]:
    return gs.load_model(trained.folder), gs.load_model(other.folder)


def new_to(runs: list[Trained], domain: str) -> list[Path]:
    """The images of a domain that no run was trained on."""
    files = sorted((runs[0].data / domain).rglob("*.*"))
    used = [set(r.files("train", domain)) for r in runs if r.record.configuration.target != domain]
    return [file for file in files if not any(file in each for each in used)]


def right(model: gs.TrainedModel, files: list[Path]) -> np.ndarray:
    labels = model.predict(files).labels
    return np.array([file.parent.name == label for file, label in zip(files, labels, strict=True)])


def test_images_new_to_both_are_counted_by_which_model_has_them_right(trained, other, models):
    model, against = models
    assert (model.preprocess.size, against.preprocess.size) == (16, 11)
    found = evaluate_model(model, open_source(str(trained.data)), against=against)
    for domain, each in found.domains.items():
        files = new_to([trained, other], domain)
        assert 0 < len(files) < 42
        ours, theirs = right(model, files), right(against, files)
        expected = [
            [np.sum(~theirs & ~ours), np.sum(~theirs & ours)],
            [np.sum(theirs & ~ours), np.sum(theirs & ours)],
        ]
        assert each.paired.matrix().tolist() == expected
    alone = [evaluate_model(m, open_source(str(trained.data))) for m in models]
    assert found.against == alone[1]
    assert found.paired.images == sum(each.paired.images for each in found.domains.values())
    assert alone[0].paired is None
    for domain, each in alone[0].domains.items():
        assert each == found.domains[domain].model_copy(update={"paired": None})


def test_a_part_is_of_the_first_model_s_split(trained, other, models):
    source = open_source(str(trained.data))
    found = evaluate_model(models[0], source, against=models[1], part="test", domains=["shop_b"])
    test = set(trained.files("test", "shop_b"))
    kept = [file for file in new_to([trained, other], "shop_b") if file in test]
    assert found.domains["shop_b"].paired.images == len(kept)
    assert found.against.domains["shop_b"].tally.images == len(test)


def test_without_a_split_every_image_is_compared(trained, models, tmp_path):
    files = [
        shutil.copyfile(m.file, tmp_path / f"{i}.safetensors") for i, m in enumerate(models)
    ]  # fmt: skip
    model, against = map(gs.load_model, files)
    found = evaluate_model(model, open_source(str(trained.data)), against=against)
    assert {each.paired.images for each in found.domains.values()} == {42}
    assert {each.seen for each in found.against.domains.values()} == {None}


def patient(file: Path) -> str:
    """Pictures of a class whose numbers follow each other are of one."""
    return f"{file.parent.name} {int(file.stem) // 2}"


@pytest.mark.parametrize("part", ["all", "test"])
def test_a_patient_that_a_model_was_trained_on_is_not_new(trained, other, models, part):
    source = open_source(str(trained.data))
    source.groups = tuple(patient(Path(name)) for name in source.listing.identities)
    domain = "shop_a"  # which the other model was not trained on
    found = evaluate_model(models[0], source, against=models[1], part=part, domains=[domain])
    known = {patient(file) for file in trained.files("train", domain)}
    files = sorted((trained.data / domain).rglob("*.*"))
    if part == "test":
        files = sorted(trained.files("test", domain))
    new = [file for file in files if patient(file) not in known]
    assert 0 < len(new) < len(files)
    ours, theirs = (right(model, new) for model in models)
    paired = found.domains[domain].paired
    counts = [np.sum(~theirs & ~ours), np.sum(~theirs & ours), np.sum(theirs & ~ours)]
    assert paired.matrix().flatten()[:3].tolist() == counts
    assert paired.images == len(new)
    for group in paired.groups:
        counts = re.findall(r"(\d)>(\d)@0:(\d+)", group)
        assert sum(int(count) for *_, count in counts) in (1, 2)
    assert len(paired.groups) == len({patient(file) for file in new})
    seen = 0 if part == "test" else len(trained.files("train", domain))
    assert found.domains[domain].seen == seen


def test_classes_in_another_order_are_matched_by_name(trained, models, tmp_path):
    """The same network, whose last layer has its rows turned about, answers the same."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    file = models[1].file
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    turned = [2, 0, 1]
    weights = load_file(file)
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name][turned].clone()
    classes = [models[1].classes[i] for i in turned]
    about = models[1].about.model_copy(update={"classes": classes})
    save_file(weights, tmp_path / file.name, header | {about.key: about.model_dump_json()})
    shutil.copyfile(file.parent / "split.json", tmp_path / "split.json")
    source = open_source(str(trained.data))
    found, expected = (
        evaluate_model(models[0], source, against=each)
        for each in (gs.load_model(tmp_path), models[1])
    )
    for domain, each in found.domains.items():
        assert each.paired == expected.domains[domain].paired


def test_what_cannot_be_compared_is_named(trained, models, tmp_path):
    source = open_source(str(trained.data))
    model = models[0]
    copy = gs.load_model(shutil.copyfile(model.file, tmp_path / "model.safetensors"))
    with pytest.raises(ArgumentError, match=r"are the same model; name two"):
        evaluate_model(model, source, against=copy)
    data = shutil.copytree(trained.data, tmp_path / "photos")
    for folder in data.glob("*/bird"):
        folder.rename(folder.with_name("fowl"))
    options = {"data": str(data), "iterations": 1, "validate_every": 1}
    configuration = trained.record.configuration.model_copy(update=options)
    train(configuration, tmp_path / "run", cache=tmp_path)
    words = r"only .*model\.safetensors knows bird and only .*run/model\.safetensors knows fowl; "
    with pytest.raises(ArgumentError, match=words):
        evaluate_model(model, source, against=gs.load_model(tmp_path / "run"))


def test_both_models_images_are_in_the_progress(trained, models):
    told = []
    source = open_source(str(trained.data))
    evaluate_model(
        models[0], source, against=models[1], progress=lambda *counts: told.append(counts)
    )
    assert told == sorted(told)
    assert told[-1] == (336, 336)


def test_a_picture_that_cannot_be_decoded_is_in_no_comparison(trained, models, tmp_path):
    data = shutil.copytree(trained.data, tmp_path / "photos")
    (data / "shop_d" / "cat" / "00.png").write_bytes(b"none")
    source = open_source(str(data))
    kept, before = (
        evaluate_model(models[0], each, against=models[1], domains=["shop_d"], skip_bad=True)
        for each in (source, open_source(str(trained.data)))
    )
    assert [file.identity for file in kept.against.skipped] == ["shop_d/cat/00.png"]
    assert kept.domains["shop_d"].tally.images == before.domains["shop_d"].tally.images - 1


def test_the_document_is_read_as_it_was_written(trained, models, tmp_path):
    found = evaluate_model(models[0], open_source(str(trained.data)), against=models[1])
    found.save(tmp_path)
    assert EvaluationFile.load(tmp_path) == found
