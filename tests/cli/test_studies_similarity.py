"""The command similarity."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., tuple[int, str, str]]
SHORT = ["rotated-digits", "--target", "75", "--iterations", "4", "--batch-size", "8"]
SHORT += ["--image-size", "12", "--device", "cpu", "--samples-per-domain", "2", "--every", "4"]


def test_figure_tables_and_record_are_written(command: Command, tmp_path: Path) -> None:
    code, out, err = command("similarity", *SHORT, "--seeds", "1,3", "--method", "deep-all")
    assert code == 0, err
    folder = tmp_path / "similarity" / "rotated-digits" / "75" / "deep-all"
    study = json.loads((folder / "similarity.json").read_text())
    assert [run["seed"] for run in study["runs"]] == [1, 3]
    assert [m["step"] for m in study["runs"][0]["measurements"]] == [0, 4]
    assert study["configuration"]["batch_size"] == 8
    files = {path.name for path in folder.iterdir()}
    suffixes = ("csv", "json", "md", "png", "svg", "pdf")
    assert files == {"seed-1", "seed-3", *(f"similarity.{suffix}" for suffix in suffixes)}
    assert "held out" in out.splitlines()[0]
    assert f"figure: {(folder / 'similarity.png').relative_to(tmp_path)}" in out
    written = {name: (folder / name).read_bytes() for name in files if "." in name}
    assert command("similarity", *SHORT, "--seeds", "1,3", "--method", "deep-all")[0] == 0
    assert written == {name: (folder / name).read_bytes() for name in written}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--every", "0"], "every must be greater than or equal to 1, found 0"),
        (
            ["--samples-per-domain", "1"],
            "samples_per_domain must be greater than or equal to 2, found 1",
        ),
        (["--seeds", "none"], "seeds must be"),
        (["--target", "90"], "its domains are 0, 15"),
        (["--samples-per-domain", "500"], "no class of rotated-digits has 500 training images"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], words: str, command: Command, tmp_path: Path
) -> None:
    code, out, err = command("similarity", *SHORT, *arguments)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert words in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["similarity", *SHORT],
        ["diagnose", "rotated-digits"],
        ["diagnose", "rotated-digits", "--target", "75", "--iterations", "1"],
        ["study", "tasks-vs-domains"],
        ["reproduce", "figure2", "--datasets", "rotated-digits"],
    ],
)
def test_a_device_that_there_is_not_is_told_before_images_are_decoded(
    arguments: list[str], command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("prepare", "prepare_images"):
        monkeypatch.delattr(f"gradsurgery.cli.studies.{name}")
    code, _, err = command(*arguments, "--device", "nope")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("error: device 'nope' cannot be used")
    assert not list(tmp_path.iterdir())
