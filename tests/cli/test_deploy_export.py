"""The command export."""

import pytest


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --format"),
        (["--format", "onnx", "--out", "a.pt"], "must end in .onnx"),
        (["--push", "someone/name"], "expected hf://owner/name"),
        (["--format", "torchscript", "--push", "hf://name"], "expected hf://owner/name"),
    ],
)
def test_an_error_is_one_line(command, model, arguments, words):
    code, out, err = command("export", "run", *arguments)
    assert (code, out) == (1, "")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("out", ["file/m.onnx", "m.pt"])
def test_a_file_that_cannot_be_written_is_found_before_the_model_is_loaded(
    command, model, tmp_path, monkeypatch, out
):
    (tmp_path / "file").touch()
    monkeypatch.delattr("gradsurgery.cli.deploy.load_model")
    code, _, err = command("export", "run", "--format", "onnx", "--out", out)
    assert code == 1
    assert err.startswith("error: cannot write")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:`torch.jit:FutureWarning")
def test_a_model_is_exported_and_does_not_replace_another(command, train_small, model, tmp_path):
    code, out, _ = command("export", model, "--format", "torchscript")
    assert code == 0
    assert out.startswith("model.pt: logits differ from the model's by ")
    assert (tmp_path / "model.pt.json").exists()
    assert command("export", model, "--format", "torchscript")[0] == 0  # the same model's
    before = (tmp_path / "model.pt").read_bytes()
    other = ["photos", "--target", "c", "--iterations", "1", "--out", "other"]
    assert train_small(*other)[0] == 0
    code, _, err = command("export", "other", "--format", "torchscript")
    assert (code, "model.pt is there, of another model (agr-sum, seed 0)" in err) == (1, True)
    assert (tmp_path / "model.pt").read_bytes() == before


def test_the_help_of_export_shows_the_shapes(command):
    shown = " ".join(command("export", "--help")[1].replace("│", " ").split())
    assert "uint8 (batch, size, size, 3)" in shown
    assert "float32 (batch, 3, size, size)" in shown
