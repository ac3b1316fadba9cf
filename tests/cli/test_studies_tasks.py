"""The command study."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gradsurgery.documents.tasks_vs_domains import TasksOptions

Command = Callable[..., tuple[int, str, str]]
SHORT = ["study", "tasks-vs-domains", "rotated-digits", "--target", "75", "--iterations", "2"]
SHORT += ["--image-size", "12", "--groups", "2", "--batch-size", "4", "--repeats", "2"]
SHORT += ["--evaluated", "10", "--measure-at", "0", "--device", "cpu"]
FEW = ["--groupings", "tasks,domains", "--rules", "sum,pcgrad", "--seeds", "2"]
FILES = {f"tasks-vs-domains.{kind}" for kind in ("json", "md", "png", "svg", "pdf")}
DIALS = {f"tasks-vs-domains-dials.{kind}" for kind in ("png", "svg", "pdf")}


def test_a_study_and_its_figure_from_what_is_stored(command: Command, tmp_path: Path) -> None:
    dial = ["--dial", "batch-size=2", "--dial-seeds", "1"]
    code, out, err = command(*SHORT, *FEW, *dial)
    assert code == 0, err
    folder = tmp_path / "tasks-vs-domains" / "rotated-digits"
    assert {path.name for path in folder.iterdir()} == FILES | DIALS
    study = json.loads((folder / "tasks-vs-domains.json").read_text())
    assert len(study["runs"]) == 2 * 2 * 2 + 2 * 2
    assert study["dials"] == {"batch_size": [2.0]}
    assert out.startswith("rotated-digits, small-cnn: 2 groups of 4 images a step, 2 steps, 2 se")
    assert "\ntasks: expected cosine across groups" in out
    lines = err.splitlines()
    assert len(lines) == 12
    assert lines[0].startswith("tasks by sum, seed 0: loss ")
    assert "; 1 of 12 runs, time left 0:0" in lines[0]
    assert "domains by pcgrad, seed 0, batch_size 2: loss " in lines[-1]
    elsewhere = tmp_path / "elsewhere"
    assert (
        command("study", "tasks-vs-domains", "--from", str(folder), "--out", str(elsewhere))[0] == 0
    )
    for name in (FILES | DIALS) - {"tasks-vs-domains.json"}:
        assert (elsewhere / name).read_bytes() == (folder / name).read_bytes()
    shutil.rmtree(elsewhere)
    code, _, err = command(*SHORT, *FEW, *dial)
    assert (code, err) == (0, "")  # nothing is left to run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--groups", "1"], "groups must be greater than or equal to 2, found 1"),
        (["--groupings", "tasks,halves"], "groupings.1 must be 'tasks', 'tasks-apart', 'domains'"),
        (["--measure-at", "first"], "--measure-at takes steps, e.g. 0,20,60, found 'first'"),
        (["--dial", "noise"], "--dial takes NAME=VALUE,VALUE, e.g. groups=2,5, found 'noise'"),
        (["--dial", "hue=2"], "unknown dial 'hue'; there are groups, batch_size, noise"),
        (["--dial", "groups=9"], "leaves 5 source domains beside '75', and 9 groups need as many"),
        (["--target", "90"], "has no domain '90'"),
        (["--tasks", "class,hue"], "unknown task 'hue'"),
        (["--from", "nowhere"], "cannot read nowhere"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], words: str, command: Command, tmp_path: Path
) -> None:
    code, out, err = command(*SHORT, *FEW, *arguments)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert words in err
    assert list(tmp_path.iterdir()) == []


def test_coded_digits_have_defaults_of_their_own():
    options = TasksOptions(data="coded-digits:domains=6")
    assert (options.target, options.image_size) == ("random", 16)
    assert TasksOptions(data="coded-digits", target="code-1").target == "code-1"
    assert (TasksOptions().target, TasksOptions().image_size) == ("75", 10)
