"""The command diagnose."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Command = Callable[..., tuple[int, str, str]]
SMALL = ["--device", "cpu", "--repeats", "2", "--batch-size", "8"]
SIZE = ["--image-size", "12"]
NETWORK = ["--backbone", "small-cnn", "--weights", "none"]
DIGITS = ["rotated-digits", *SMALL]


def write_domains(root: Path, labels: dict[str, dict[str, str]]) -> None:
    """Domains of 20 copies of one image and 3 of another, each of the class that `labels` say."""
    random = np.random.default_rng(3)
    pixels = {name: random.integers(0, 256, (12, 12, 3), dtype=np.uint8) for name in ("x", "y")}
    for domain, classes in labels.items():
        for name, label in classes.items():
            folder = root / domain / label
            folder.mkdir(parents=True)
            for copy in range(20 if name == "x" else 3):
                Image.fromarray(pixels[name]).save(folder / f"{name}{copy}.png")


def diagnosis_of(command: Command, root: Path, *options: str) -> tuple[dict[str, Any], str]:
    arguments = [str(root), *NETWORK, *SIZE, *SMALL, "--batch-size", "16", *options]
    code, out, err = command("diagnose", *arguments, "--out", "found")
    assert code == 0, err
    return json.loads(Path("found/diagnosis.json").read_text()), out


def test_opposite_labels_for_the_same_images_are_a_full_conflict(
    command: Command, tmp_path: Path
) -> None:
    swapped = {"ours": {"x": "cat", "y": "dog"}, "theirs": {"x": "dog", "y": "cat"}}
    write_domains(tmp_path / "images", swapped)
    found, out = diagnosis_of(command, tmp_path / "images")
    total = found["snapshots"][0]["total"]
    assert found["domains"] == ["ours", "theirs"]
    # exactly −1 only where the network gives both classes the same probability
    assert total["cosines"][0][1] < -0.9
    assert total["agreeing"] < 0.1
    assert found["snapshots"][0]["shuffled_agreeing"] > 2 * total["agreeing"]
    assert "ours and theirs disagree in 9" in out


def test_identical_domains_do_not_conflict(command: Command, tmp_path: Path) -> None:
    same = {"ours": {"x": "cat", "y": "dog"}, "theirs": {"x": "cat", "y": "dog"}}
    write_domains(tmp_path / "images", same)
    found, _ = diagnosis_of(command, tmp_path / "images")
    total = found["snapshots"][0]["total"]
    assert total["cosines"][0][1] > 0.999
    assert total["agreeing"] > 0.99
    assert total["kept_length"] > 0.999


def test_a_short_run_a_run_s_folder_and_the_files(command: Command, tmp_path: Path) -> None:
    short = [*SIZE, "--target", "75", "--iterations", "4", "--every", "2", "--log-conflict", "1"]
    code, out, err = command("diagnose", *DIGITS, *short)
    assert code == 0, err
    folder = tmp_path / "diagnosis" / "rotated-digits"
    found = json.loads((folder / "diagnosis.json").read_text())
    assert [snapshot["step"] for snapshot in found["snapshots"]] == [0, 2, 4]
    assert found["options"]["batch_size"] == 8
    figures = {"domains", "layers", "training"}
    names = {f"diagnosis-{figure}.{kind}" for figure in figures for kind in ("png", "svg", "pdf")}
    assert {path.name for path in folder.iterdir()} == {
        "run",
        "diagnosis.json",
        "diagnosis.md",
        *names,
    }
    assert "with the sum of the others is" in out
    written = {name: (folder / name).read_bytes() for name in (*names, "diagnosis.json")}
    assert command("diagnose", *DIGITS, *short)[:2] == (0, out)
    assert written == {name: (folder / name).read_bytes() for name in written}
    run = folder / "run"
    code, out, err = command("diagnose", *DIGITS, "--run", str(run), "--by-layer")
    assert code == 0, err
    layers = json.loads((run / "diagnosis.json").read_text())["snapshots"][0]["groups"]
    assert "features.1" in [group["name"] for group in layers]
    assert "Agr-Sum leaves" in (run / "diagnosis.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run", "absent"], "cannot read absent/record.json: No such file"),
        (["--run", "absent", "--target", "75"], "--target comes from the run's record"),
        (["--run", "absent", "--learning-rate", "1"], "--learning-rate comes from the run"),
        ([*SIZE, "--iterations", "5"], "needs a domain to hold out; give --target"),
        (["--repeats", "0"], "repeats must be greater than or equal to 1, found 0"),
        ([*SIZE, "--target", "90"], "its domains are 0, 15"),
        ([*SIZE, "--target", "90", "--iterations", "0"], "has no domain '90'"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], words: str, command: Command, tmp_path: Path
) -> None:
    code, out, err = command("diagnose", *DIGITS, *arguments)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert words in err
    assert list(tmp_path.iterdir()) == []
