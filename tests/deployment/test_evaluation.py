"""What evaluation counts, against predicting the files one by one."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import gradsurgery as gs
from gradsurgery.data import open_source
from gradsurgery.data.folder import CLASS_AND_NAME, LayoutSource
from gradsurgery.deployment.evaluation import evaluate_model
from gradsurgery.documents.deployment import EvaluationFile
from gradsurgery.documents.record import SplitFile
from gradsurgery.errors import ArgumentError, DataError
from gradsurgery.training import train


@pytest.fixture(scope="module")
def model(trained) -> gs.TrainedModel:
    return gs.load_model(trained.folder)


def opened(place: Path):
    return open_source(str(place), classes="all")


def matrix_by_hand(model, files: list[Path]) -> np.ndarray:
    matrix = np.zeros((3, 3), int)
    for file, label in zip(files, model.predict(files).labels, strict=True):
        matrix[model.classes.index(file.parent.name), model.classes.index(label)] += 1
    return matrix


def test_every_image_is_counted_by_class_and_prediction(trained, model):
    evaluation = evaluate_model(model, opened(trained.data), batch_size=9)
    assert list(evaluation.domains) == ["shop_a", "shop_b", "shop_c", "shop_d"]
    for domain, found in evaluation.domains.items():
        files = sorted((trained.data / domain).rglob("*.*"))
        assert (found.tally.matrix() == matrix_by_hand(model, files)).all()
        trained_on = [] if domain == "shop_d" else trained.files("train", domain)
        assert found.seen == len(trained_on)
    assert (evaluation.trained_on, evaluation.target) == (["shop_a", "shop_b", "shop_c"], "shop_d")


def test_the_test_part_has_the_accuracies_and_the_tallies_of_the_record(trained, model):
    evaluation = evaluate_model(model, opened(trained.data), part="test")
    best = trained.record.result.best
    for domain, found in evaluation.domains.items():
        assert found.tally.accuracy == best.test_accuracy[domain]
        assert found.tally.confusion == best.tests[domain].confusion
        assert found.tally.log_loss == pytest.approx(best.tests[domain].log_loss, rel=1e-5)
        assert found.seen == 0


def test_a_part_that_is_empty_is_told_with_what_to_do(trained, tmp_path):
    shutil.copytree(trained.folder, tmp_path / "run")
    split = SplitFile.load(trained.folder)
    split.domains["shop_a"]["test"] = []
    split.save(tmp_path / "run")
    words = "the run's split has no test images of shop_a; give another --part, or images that"
    with pytest.raises(DataError, match=words):
        evaluate_model(
            gs.load_model(tmp_path / "run"), opened(trained.data), part="test", domains=["shop_a"]
        )


def test_a_record_s_recalls_sum_up_to_its_accuracy(trained):
    for result in (trained.record.result.best, trained.record.result.last):
        assert set(result.tests) == set(result.test_accuracy)
        for domain, tally in result.tests.items():
            matrix = tally.matrix()
            assert matrix.sum() == trained.record.split.sizes[domain].test
            assert matrix.trace() / matrix.sum() == result.test_accuracy[domain]


def test_classes_that_the_model_does_not_know_are_counted_apart(trained, model, tmp_path):
    data = shutil.copytree(trained.data, tmp_path / "photos")
    (data / "shop_a" / "dog").rename(data / "shop_a" / "Dog")
    (data / "shop_b" / "dog").rename(data / "shop_b" / "dog ")  # which looks like the model's
    shutil.rmtree(data / "shop_b" / "cat")
    (data / "shop_c" / "dog").rename(data / "shop_c" / "dog ")
    (data / "shop_d" / "dog").rename(data / "shop_d" / "dog ")
    evaluation = evaluate_model(model, opened(data))
    assert [evaluation.domains[f"shop_{d}"].unknown for d in "abcd"] == [{"Dog": 14}, {}, {}, {}]
    files = sorted((data / "shop_a" / "bird").iterdir()) + sorted(
        (data / "shop_a" / "cat").iterdir()
    )
    expected = matrix_by_hand(model, files)
    assert (evaluation.domains["shop_a"].tally.matrix() == expected).all()
    assert evaluation.domains["shop_b"].tally.matrix()[1].sum() == 0


def test_images_are_counted_by_what_they_belong_to(trained, model):
    # 00.png … 13.png: two groups, by their first digit
    source = open_source(str(trained.data), layout=r"(?P<domain>.*)/(?P<class>.*)/(?P<group>.).*")
    found = evaluate_model(model, source, domains=["shop_a"]).domains["shop_a"].tally
    for group, first in zip(found.groups, "01", strict=True):
        files = sorted((trained.data / "shop_a").glob(f"*/{first}*"))
        expected = matrix_by_hand(model, files)
        matrix = np.zeros((3, 3), int)
        for cell in group.split():
            label, predicted, _, count = map(int, re.split("[>@:]", cell))
            matrix[label, predicted] += count
        assert (matrix == expected).all()
    plain = evaluate_model(model, opened(trained.data), domains=["shop_a"])
    assert plain.domains["shop_a"].tally.groups == []


def test_a_record_has_the_groups_that_evaluation_counts(trained, tmp_path):
    layout = r"(?P<domain>.*)/(?P<class>.*)/(?P<group>..).*"
    options = {"layout": layout, "iterations": 2, "validate_every": 2}
    configuration = trained.record.configuration.model_copy(update=options)
    record = train(configuration, tmp_path / "run", cache=tmp_path)
    source = open_source(str(trained.data), layout=layout)
    found = evaluate_model(gs.load_model(tmp_path / "run"), source, part="test")
    for domain, tally in record.result.best.tests.items():
        assert sorted(tally.groups) == sorted(found.domains[domain].tally.groups)
        assert tally.in_groups


def test_a_folder_of_one_domain(trained, model):
    source = LayoutSource(trained.data / "shop_d", CLASS_AND_NAME, "shop_d")
    found = evaluate_model(model, source)
    files = sorted((trained.data / "shop_d").rglob("*.*"))
    assert (found.domains["shop_d"].tally.matrix() == matrix_by_hand(model, files)).all()


def test_an_image_that_cannot_be_decoded_is_an_error_or_is_listed(trained, model, tmp_path):
    data = shutil.copytree(trained.data, tmp_path / "photos")
    (data / "shop_a" / "cat" / "00.png").write_bytes(b"none")
    with pytest.raises(DataError, match=r"cannot decode .*shop_a/cat/00\.png.*--skip-bad"):
        evaluate_model(model, opened(data))
    found = evaluate_model(model, opened(data), skip_bad=True)
    assert [file.identity for file in found.skipped] == ["shop_a/cat/00.png"]
    assert found.domains["shop_a"].tally.images == 41


def test_images_of_which_none_can_be_decoded_are_an_error(trained, model, tmp_path):
    data = shutil.copytree(trained.data, tmp_path / "photos")
    for file in data.rglob("*.*"):
        file.write_bytes(b"none")
    words = r"none of the 168 images of photos can be decoded, the first shop_a/bird/00\.png: "
    with pytest.raises(DataError, match=words):
        evaluate_model(model, opened(data), skip_bad=True)
    for file in trained.data.glob("shop_d/*/*.*"):
        shutil.copyfile(file, data / file.relative_to(trained.data))
    found = evaluate_model(model, opened(data), skip_bad=True)
    assert [each.tally.images for each in found.domains.values()] == [0, 0, 0, 42]


def test_images_that_were_trained_on_are_known_under_any_name(trained, model, tmp_path):
    data = tmp_path / "next_year" / "new" / "cat"
    data.mkdir(parents=True)
    learned = [f for f in trained.files("train", "shop_a") if f.parent.name == "cat"]
    others = [f for f in trained.files("test", "shop_a") if f.parent.name == "cat"]
    held_out = [f for f in trained.files("train", "shop_d") if f.parent.name == "cat"]
    for number, file in enumerate([*learned, *others, *held_out]):
        shutil.copyfile(file, data / f"{number}{file.suffix}")
    source = open_source(str(data.parent.parent), classes="all", fewest_domains=1)
    assert evaluate_model(model, source).domains["new"].seen == len(learned) > 0


def test_a_split_of_before_files_were_noted_knows_names(trained, tmp_path):
    run = shutil.copytree(trained.folder, tmp_path / "run")
    split = json.loads((run / "split.json").read_text())
    assert len(split.pop("files")["shop_a"]) == len(trained.files("train", "shop_a"))
    (run / "split.json").write_text(json.dumps(split))
    found = evaluate_model(gs.load_model(run), opened(trained.data))
    assert found.domains["shop_a"].seen == len(trained.files("train", "shop_a"))
    other = shutil.copytree(trained.data, tmp_path / "other")
    assert evaluate_model(gs.load_model(run), opened(other)).domains["shop_a"].seen is None


def test_data_that_is_read_otherwise_is_not_that_of_the_split(trained, model):
    source = open_source(str(trained.data), layout="{domain}/{class}/{name}.{id}")
    with pytest.raises(DataError, match=r"none of the \d+ images of the run's split, .*--layout"):
        evaluate_model(model, source, part="test")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"domains": ["shop_e"]}, "no domain 'shop_e'; its domains are shop_a"),
        ({"domains": "shop_a"}, r"a list of names, found 'shop_a'; give \['shop_a'\]"),
        ({"part": "validation"}, "no split of other beside .*, a model that was trained on photos"),
    ],
)
def test_what_is_not_there_is_named(trained, model, tmp_path, options, words):
    data = shutil.copytree(trained.data, tmp_path / "other")
    with pytest.raises(ArgumentError, match=words):
        evaluate_model(model, opened(data), **options)


def test_a_domain_that_only_looks_as_it_was_typed_is_named(trained, model, tmp_path):
    data = shutil.copytree(trained.data, tmp_path / "other")
    (data / "shop_d").rename(data / "K\u0061\u0308se")  # as a Mac writes it
    with pytest.raises(ArgumentError, match=r"one that looks the same .*: rename it"):
        evaluate_model(model, opened(data), domains=["K\u00e4se"])


def test_a_split_of_images_that_are_gone_is_an_error(trained, model, tmp_path):
    data = shutil.copytree(trained.data, tmp_path / "photos")
    identity = trained.files("test", "shop_d")[0].relative_to(trained.data)
    (data / identity).unlink()
    with pytest.raises(DataError, match=f"lacks 1 images of the run's split, the first {identity}"):
        evaluate_model(model, opened(data), part="test")


def test_data_without_a_class_of_the_model_is_an_error(trained, model, tmp_path):
    data = shutil.copytree(trained.data, tmp_path / "photos")
    for folder in data.glob("*/*"):
        folder.rename(folder.with_name(folder.name.upper()))
    with pytest.raises(DataError, match="none of the 168 images of photos is of a class"):
        evaluate_model(model, opened(data))


def test_the_document_is_read_as_it_was_written(trained, model, tmp_path):
    evaluation = evaluate_model(model, opened(trained.data), domains=["shop_d"])
    evaluation.save(tmp_path)
    assert EvaluationFile.load(tmp_path) == evaluation


def test_files_of_domains_that_are_not_asked_for_are_not_read(trained, model, monkeypatch):
    read, plain, photos = [], Path.read_bytes, trained.data
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or plain(path))
    source = opened(photos)
    evaluation = evaluate_model(model, source, domains=source.domains[:1])
    files = {path for path in read if photos in path.parents}
    (counted,) = evaluation.domains.values()
    assert len(files) == counted.tally.matrix().sum() == source.counts()[0].sum()
