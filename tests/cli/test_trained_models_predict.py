"""The command predict."""

import csv
from pathlib import Path

import pytest

from gradsurgery.deployment.trained_model import TrainedModel


def test_pictures_of_a_folder_are_printed_with_their_classes(command, model):
    code, out, err = command("predict", model, "photos/c", "--top", "2")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 12
    assert lines[0].startswith("photos/c/dark/0.png  ")
    assert lines[0].count("%") == 2


def test_what_cannot_be_decoded_is_named_and_the_rest_goes_on(command, model, tmp_path):
    (tmp_path / "photos" / "c" / "dark" / "2.png").write_bytes(b"no picture")
    (tmp_path / "photos" / "c" / "notes.txt").touch()
    code, out, err = command("predict", model, "photos/c", "--out", "p.csv")
    assert code == 0
    assert "11 predictions: p.csv" in out
    assert "photos/c/dark/2.png: it is not an image in a known format" in err
    assert "photos/c/notes.txt: .txt is not read" in err
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert [row["image"] for row in rows if row["error"]] == ["photos/c/dark/2.png"]
    again = command("predict", model, "photos/c", "--out", "p.csv")[2].splitlines()[0]
    assert again == (
        "12 pictures had their row before, 1 with an error; delete such a row to have its picture "
        "tried again"
    )


@pytest.mark.parametrize("name", ["predict", "explain"])
def test_a_path_that_is_not_there_is_an_error_before_anything_is_done(
    command, model, tmp_path, name
):
    code, out, err = command(name, model, "photos/c", "nothere", "--out", "p.csv")
    assert (code, out) == (1, "")
    assert err == ("error: there is no such file or folder: nothere; check how it is spelled\n")
    assert not (tmp_path / "p.csv").exists()


@pytest.mark.parametrize("name", ["predict", "explain"])
def test_a_table_of_pictures_is_called_one(command, model, tmp_path, name):
    (tmp_path / "list.csv").write_text("path,label,domain\na.png,x,y\n")
    code, out, err = command(name, model, "photos/c", "list.csv", "--out", "p.csv")
    assert (code, out) == (1, "")
    assert err.startswith("error: list.csv is a table; name pictures, or folders of them (a table")


@pytest.mark.parametrize("out", ["p.csv", "p.parquet"])
def test_an_interrupted_command_goes_on_where_it_was(command, model, monkeypatch, out, tmp_path):
    command("predict", model, "photos", "--out", f"whole-{out}", "--batch-size", "5")
    taken = []

    def interrupted(self, *about, plain=TrainedModel.stream, **options):
        for part in plain(self, *about, **options):
            if len(taken) == 3:
                raise KeyboardInterrupt
            taken.append(part)
            yield part

    monkeypatch.setattr(TrainedModel, "stream", interrupted)
    code, _, err = command("predict", model, "photos", "--out", out, "--batch-size", "5")
    assert (code, err) == (130, "interrupted; repeat the same command to continue\n")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    code, said, err = command("predict", model, "photos", "--out", out, "--batch-size", "5")
    assert (code, err) == (0, "15 pictures had their row before\n")
    assert said == f"21 predictions: {out}\n"
    assert Path(out).read_bytes() == Path(f"whole-{out}").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent", "photos"], "there is no model 'absent': no such file"),
        (["photos", "photos"], "there is no model 'photos/model.safetensors'"),
        (["run/record.json", "photos"], "is no whole model file"),
        (["run", "photos", "--out", "p.txt"], "must end in .csv or .parquet"),
        (["run", "photos", "--device", "tpu"], "device 'tpu' cannot be used"),
        (["run", "empty"], "empty holds no file"),
        (["run", "run/record.json"], "none of 1 picture can be decoded"),
    ],
)
def test_an_error_is_one_line(command, model, tmp_path, arguments, words):
    (tmp_path / "empty").mkdir()
    code, out, err = command("predict", *arguments)
    assert (code, out) == (1, "")
    assert words in err.splitlines()[-1]
