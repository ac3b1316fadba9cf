import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gradsurgery.cli.live import panel, time_left
from gradsurgery.cli.sweep import grid_from
from gradsurgery.errors import ArgumentError
from gradsurgery.sweep.schedule import SweepProgress
from gradsurgery.training import TrainingProgress

SHORT = ["--iterations", "6", "--validate-every", "3", "--batch-size", "8"]
SHORT += ["--image-size", "12", "--device", "cpu"]
ON_RAY = ["--launcher", "ray"]
Command = Callable[..., tuple[int, str, str]]


@pytest.mark.usefixtures("unrendered")
def test_a_sweep_ends_with_its_table_and_the_path_of_its_report(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plan.yaml").write_text(
        "data: rotated-digits\ntargets: [75]\nmethods: [deep-all, agr-sum]\nseeds: 3\n"
        "grid: {learning_rate: [1e-3, 5e-3]}\n"
    )
    arguments = ["sweep", "--plan", "plan.yaml", *SHORT, "--out", "runs"]
    code, out, err = command(*arguments, "--seeds", "1", "--workers", "1", "--tensorboard")
    assert code == 0, err
    assert len(err.splitlines()) == 4
    assert out.splitlines()[-1] == "report: runs/report/report.html"
    assert (tmp_path / "runs/report/report.html").exists()
    assert (tmp_path / "runs/report/selection.md").exists()
    rates = {
        json.loads(path.read_text())["configuration"]["learning_rate"]
        for path in tmp_path.glob("runs/**/record.json")
    }
    assert rates == {1e-3, 5e-3}
    record = next(tmp_path.glob("runs/**/record.json"))
    events = EventAccumulator(str(record.parent / "tensorboard")).Reload()
    validated = [(e.step, e.value) for e in events.Scalars("validation/accuracy")]
    curves = json.loads(record.read_text())["curves"]
    assert [step for step, _ in validated] == curves["step"] == [3, 6]
    assert [value for _, value in validated] == pytest.approx(curves["validation_accuracy"])
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    code, out, err = command(*arguments, "--seeds", "1", "--iterations", "7")
    assert code == 1
    assert "runs belongs to another plan, with other iterations (6 there, 7 here); choose" in err
    assert "4 of its runs, as " in err
    assert command(*arguments, "--seeds", "1", "--iterations", "7", "--dry-run")[0::2] == (1, err)
    code, out, err = command(*arguments, "--seeds", "2", "--dry-run")
    assert code == 0
    assert out.splitlines()[0] == "8 runs, 4 finished in runs"
    assert out.splitlines()[1].startswith("4 to do: about ")
    code, out, err = command(*arguments, "--seeds", "2", "--dry-run", "--workers", "16")
    found = re.search(r"about (\S+) s of one worker, (\S+) s with 16;", out)
    assert found is not None, out
    assert float(found[1]) / float(found[2]) == pytest.approx(4, rel=0.1)  # four runs, not 16
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    code, out, err = command(*arguments, "--seeds", "2", "--dry-run", "--launcher", "ray")
    assert re.search("s of one worker; from", out), out  # nobody knows how large the cluster is


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "data is missing; give one"),
        (["--plan", "none.yaml"], "cannot read the plan none.yaml"),
        (["nowhere"], "no data set 'nowhere'"),
        (["rotated-digits", "--grid", "learning_rate"], "--grid takes NAME=V1,V2"),
        (
            ["rotated-digits", "--grid", "lr=1"],
            "error: grid: unknown option 'lr'; there is",
        ),
        (["rotated-digits", "--threads", "0"], "--threads is at least 1, found 0"),
        (["rotated-digits", "--threads", "0", "--launcher", "ray"], "--threads is at least 1"),
        (["nowhere", "--workers", "0"], "--workers is at least 1, found 0"),  # before the data
        (["nowhere", "--logger", "nope"], "unknown logger 'nope'"),
        (["rotated-digits", "--device", "nope"], "device 'nope' cannot be used"),
        (["rotated-digits", "--device", "meta"], "device 'meta' cannot train; choose auto, cpu"),
        (["rotated-digits", "--device", "cuda:0"], "a sweep shares out the GPUs itself"),
        (["rotated-digits", "--device", "nope", *ON_RAY], "device 'nope' cannot be used"),
        (["rotated-digits", "--cuda-graph", "on"], "cannot be had: the device is cpu; leave it"),
        (["rotated-digits", "--cuda-graph", "on", "--device", "auto"], "there is no GPU; leave it"),
        (
            ["rotated-digits", "--cuda-graph", "on", "--device", "auto", "--precision", "float16"],
            "cannot be had: float16 adapts",
        ),
        (
            ["rotated-digits", "--cuda-graph", "on", "--device", "auto", "--methods", "mixup"],
            "cannot be had: mixup may compute another thing at every step",
        ),
        (["nowhere", "--ray-address", "auto"], "--ray-address is for --launcher ray, found local"),
        (["rotated-digits", *ON_RAY, "--ray-address", "127.0.0.1:1"], "no Ray cluster at 127.0.0"),
    ],
)
def test_what_a_sweep_cannot_do_is_one_line_before_any_work(
    arguments: list[str],
    words: str,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    code, out, err = command("sweep", *SHORT, *arguments)
    assert (code, out) == (1, "")
    assert words in err
    assert len(err.splitlines()) == 1
    assert command("sweep", *SHORT, *arguments, "--dry-run") == (code, out, err)
    assert not (tmp_path / "sweeps").exists()


def test_a_launcher_whose_package_is_missing_is_told_before_any_work(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for dry in ([], ["--dry-run"]):
        assert command("sweep", *SHORT, "rotated-digits", *ON_RAY, *dry) == (
            1,
            "",
            "error: --launcher ray needs the package ray; pip install 'gradsurgery[ray]'\n",
        )
    assert not (tmp_path / "sweeps").exists()


@pytest.mark.parametrize("verb", ["sweep", "deploy"])
def test_a_dry_run_refuses_images_that_are_of_no_use(
    verb: str, command: Command, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    photos = make_folder(tmp_path / "photos", ("a", "b", "few"), each=10)
    small = ["--backbone", "small-cnn", "--weights", "none", "--methods", "deep-all", "--seeds"]
    arguments = [verb, "photos", *small, "1", "--out", "mine", *SHORT]
    for i in range(2, 10):
        for label in ("cat", "dog"):
            (photos / "few" / label / f"{i}.png").unlink()
    code, out, err = command(*arguments, "--dry-run")
    assert (code, out) == (1, "")
    assert "photos is too small: no image of few is left for testing" in err
    assert command(*arguments) == (code, out, err)
    (photos / "a" / "cat" / "0.png").write_bytes(b"no picture")
    code, out, err = command(*arguments, "--dry-run")
    assert (code, out, err.count("a/cat/0.png")) == (1, "", 1)
    assert command(*arguments) == (code, out, err)


def test_figure_2_looks_at_all_of_its_data_before_its_first_run(
    command: Command, tmp_path: Path
) -> None:
    for arguments, words in (
        (["rotated-digits,nowhere"], "no data set 'nowhere'"),
        (["rotated-digits", "--targets", "75,90"], "has no domain '90'"),
    ):
        code, out, err = command("reproduce", "figure2", "--datasets", *arguments, *SHORT)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert words in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("grid: 3", "grid of the plan: must be a mapping, found 3"),
        ("options: [a]", "options of the plan: must be a mapping, found ['a']"),
        ("options: {settings: 3}", "settings of the plan: must be a mapping, found 3"),
        ("grid:", "unknown method 'no'"),
    ],
)
def test_a_plan_with_a_part_of_the_wrong_kind_is_one_line(
    part: str, words: str, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "plan.yaml").write_text(f"data: rotated-digits\nmethods: ['no']\n{part}\n")
    code, _, err = command("sweep", "--plan", "plan.yaml", "--set", "ema.decay=0.5")
    assert code == 1
    assert words in err
    assert len(err.splitlines()) == 1


def test_values_to_try_are_numbers_where_they_look_like_it() -> None:
    assert grid_from(["learning-rate=1e-5,0", "backbone=alexnet,resnet18", "irm.penalty=10"]) == {
        "learning_rate": [1e-5, 0],
        "backbone": ["alexnet", "resnet18"],
        "irm.penalty": [10],
    }
    with pytest.raises(ArgumentError, match="found 'x='"):
        grid_from(["x="])


def test_values_that_are_given_are_tried_with_each_of_a_list_of_grids(
    command: Command, tmp_path: Path
) -> None:
    drawn = "grid: [{learning_rate: 1e-3, weight_decay: 0}, {learning_rate: 2e-3}]\n"
    (tmp_path / "plan.yaml").write_text(f"data: rotated-digits\nmethods: [deep-all]\n{drawn}")
    given = ["--targets", "75", "--seeds", "1", "--iterations", "1", "--grid", "batch_size=2,4,8"]
    code, out, err = command("sweep", "--plan", "plan.yaml", *given, "--dry-run")
    assert code == 0, err
    assert out.startswith("6 runs, 0 finished")
    code, out, err = command("compare", "--plan", "plan.yaml", *given, "--dry-run")
    assert out.startswith("6 runs, 0 finished"), err
    one = ["--methods", "deep-all", "--targets", "75", "--seeds", "1", "--iterations", "1"]
    code, out, err = command("sweep", "rotated-digits", *one, "--dry-run")
    assert out.startswith("1 run, 0 finished"), err


def test_the_panel_says_how_it_goes() -> None:
    from rich.console import Console

    progress = SweepProgress(total=10, workers=2, found=2, done=3, failed=1, aside=1)
    progress.running["pacs sketch agr-sum seed 0"] = TrainingProgress("training", 20, 100)
    progress.running["pacs [photo] irm seed 0"] = None
    progress.best["pacs", "sketch"] = (0.625, "irm")
    assert time_left(progress.seconds_left()) == "–"
    progress._seconds.extend([30.0, 90.0])
    assert time_left(progress.seconds_left()) == "0:02:00"  # 4 runs of a minute, two at a time
    console = Console(width=160, record=True)
    console.print(panel("runs", progress))
    text = console.export_text()
    for words in ("5 done of 10", "2 running", "1 failed", "1 elsewhere", "time left 0:02:00"):
        assert words in text
    assert "pacs sketch agr-sum seed 0  training 20/100" in text
    assert "pacs [photo] irm seed 0     starting" in text
    assert "best on pacs sketch  62.5%  irm" in text
