"""`gradsurgery explain` on a run, on pictures, and on what it cannot explain."""

import re
import shutil
import sys

import pytest
from PIL import Image

from gradsurgery.documents.record import SplitFile
from gradsurgery.documents.studies import Explanation


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from gradsurgery import RunConfiguration, train

    folder = tmp_path_factory.mktemp("run")
    options = {"data": "rotated-digits", "target": "75", "iterations": 2, "batch_size": 4}
    options["image_size"] = 12
    train(RunConfiguration(**options, method="deep-all"), folder, cache=folder / "cache")
    return folder


def test_a_run_is_explained_on_its_test_images(run, command):
    cache = str(run / "cache")
    code, output, errors = command("explain", str(run), "--cache", cache, "--per-domain", "2")
    assert code == 0, errors
    found = Explanation.load(run / "explanation")
    assert found.target == "75"
    assert {answer.domain for answer in found.shown} == {"0", "15", "30", "45", "60", "75"}
    assert f"of {len(found.places)} images" in " ".join(output.split())
    for name in ("answers", "features"):
        assert (run / "explanation" / f"explanation-{name}.svg").stat().st_size
    written = (run / "explanation" / "explanation.md").read_text()
    printed = " ".join(output.split())
    sentences = re.findall("^- (.*)$", written, re.MULTILINE)
    assert len(sentences) == 2  # how, and what neighbours have in common
    assert all(sentence in printed for sentence in sentences)


def test_pictures_are_explained(run, command, tmp_path):
    Image.new("L", (20, 20), 128).save(tmp_path / "a.png")
    out = tmp_path / "out"
    given = [str(run), str(tmp_path / "a.png"), "--out", str(out)]
    code, output, errors = command("explain", *given, "--by", "integrated-gradients")
    assert code == 0, errors
    assert [answer.identity for answer in Explanation.load(out).shown] == ["a.png"]
    assert "1 answer explained by integrated gradients from grey." in output
    before = (run / "explanation" / Explanation.file_name).read_bytes()
    assert command("explain", str(run), str(tmp_path / "a.png"))[0] == 0
    assert Explanation.load(run / "explanation-pictures").data == "pictures"
    assert (run / "explanation" / Explanation.file_name).read_bytes() == before


def test_a_package_that_is_missing_is_told_before_anything_is_read(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    code, _, errors = command("explain", "no-such-model")
    assert (code, errors) == (
        1,
        'error: attribution needs captum: pip install "gradsurgery[explain]"\n',
    )


def test_a_broken_picture_is_named_and_the_others_explained(run, command, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no picture")
    for number in range(80):  # broken ones are not among the 60 that it takes
        (folder / f"a{number}.png").write_bytes(b"no picture")
    (folder / "notes.txt").touch()
    Image.new("L", (20, 20), 128).save(folder / "b.png")
    out = tmp_path / "out"
    code, _, errors = command("explain", str(run), str(folder), "--out", str(out))
    assert code == 0, errors
    assert f"{folder / 'a.png'}: it is not an image in a known format" in errors
    assert f"{folder / 'notes.txt'}: .txt is not read" in errors
    assert [answer.identity for answer in Explanation.load(out).shown] == ["b.png"]


def test_what_cannot_be_explained_is_named(run, command, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    code, _, errors = command("explain", str(run), str(tmp_path / "a.png"))
    assert (code, "none of 1 picture can be decoded" in errors) == (1, True)
    alone = tmp_path / "model.safetensors"
    alone.write_bytes((run / "model.safetensors").read_bytes())
    code, _, errors = command("explain", str(alone))
    assert "lies beside no record of a run; name the pictures to explain" in errors
    cache = str(run / "cache")
    code, _, errors = command("explain", str(run), "--cache", cache, "--data", "colored-digits")
    assert (code, "which the run was tested on" in errors) == (1, True)


def test_a_run_without_test_images_has_none_to_explain(run, command, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    split = SplitFile.load(run)
    for parts in split.domains.values():
        parts["test"] = []
    split.save(tmp_path / "run")
    code, _, errors = command("explain", str(tmp_path / "run"), "--cache", str(run / "cache"))
    assert code == 1
    said = "the run's split has no test images to explain answers on; name pictures to explain"
    assert errors.endswith(f"error: {said}\n")
