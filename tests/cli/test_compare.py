import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gradsurgery.cli.compare import parse_seeds
from gradsurgery.errors import ArgumentError

SHORT = ["--iterations", "6", "--validate-every", "3", "--batch-size", "8"]
SHORT += ["--image-size", "12", "--device", "cpu"]
Command = Callable[..., tuple[int, str, str]]


def test_compare_trains_the_grid_prints_the_table_and_repeats_nothing(
    command: Command, tmp_path: Path
) -> None:
    arguments = ["compare", "rotated-digits", "--methods", "deep-all,agr-sum", "--targets"]
    arguments += ["75,0", "--seeds", "2", *SHORT, "--out", "runs"]
    code, out, err = command(*arguments)
    assert (code, err) == (0, "")
    lines = out.split("rotated-digits: target")[0].splitlines()
    assert [line.split("]")[0] for line in lines] == [f"[{run}/8" for run in range(1, 9)]
    found = sorted(str(p.parent.relative_to(tmp_path)) for p in tmp_path.glob("**/record.json"))
    assert found == [
        f"runs/{target}/{method}/seed-{seed}"
        for target in ("0", "75")
        for method in ("agr-sum", "deep-all")
        for seed in (0, 1)
    ]
    assert out.count("accuracy on") == 8
    assert "finished before" not in out
    assert "deep-all" in out.splitlines()[-3]
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("**/record.json")}
    code, again, _ = command(*arguments)
    assert code == 0
    assert again.count("finished before") == 8
    assert again.split("rotated-digits: target")[1] == out.split("rotated-digits: target")[1]
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.glob("**/record.json")}


def test_compare_goes_on_after_a_failure_and_reports_it(command: Command, tmp_path: Path) -> None:
    (tmp_path / "runs" / "75" / "deep-all").mkdir(parents=True)
    (tmp_path / "runs" / "75" / "deep-all" / "seed-0").touch()  # in the way
    arguments = ["compare", "rotated-digits", "--methods", "deep-all,agr-sum", "--targets", "75"]
    code, out, err = command(*arguments, "--seeds", "1", *SHORT, "--out", "runs")
    assert code == 1
    assert "accuracy on 75" in out
    assert err.splitlines()[-1].startswith("error: 1 of 2 runs failed: 75 deep-all seed 0:")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "deep-all,agr"], "unknown method 'agr'"),
        (["--targets", "75,90"], "no domain '90'"),
        (["--seeds", "three"], "seeds must be a count"),
        (["--methods", ","], "no method"),
    ],
)
def test_compare_checks_the_grid_before_any_run(
    arguments: list[str], words: str, command: Command, tmp_path: Path
) -> None:
    code, out, err = command("compare", "rotated-digits", *arguments, *SHORT)
    assert (code, out) == (1, "")
    assert words in err
    assert list(tmp_path.iterdir()) == []


def test_an_average_goes_with_every_method_of_a_comparison(
    command: Command, tmp_path: Path
) -> None:
    arguments = ["compare", "rotated-digits", "--targets", "75", "--seeds", "1", *SHORT]
    arguments += ["--methods", "deep-all,group-dro", "--set", "group-dro.eta=0.5", "--average"]
    code, out, err = command(*arguments, "swad", "--set", "swad.optimum_patience=2")
    assert code == 0, err
    assert out.count("(average of steps 1 to") == 2
    settings = [
        json.loads(path.read_text())["configuration"]["settings"]
        for path in sorted(tmp_path.glob("**/record.json"))
    ]
    average = {"swad.optimum_patience": 2}
    assert settings == [average, {"group-dro.eta": 0.5, **average}]
    code, out, err = command(*arguments, "ema", "--set", "swad.optimum_patience=2")
    assert (code, out) == (1, "")
    assert "swad.optimum_patience is set and the average is 'ema'" in err


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("3", [0, 1, 2]),
        ("1", [0]),
        ("0-4", [0, 1, 2, 3, 4]),
        ("7-7", [7]),
        ("0,1,2", [0, 1, 2]),
        ("5,", [5]),
        ("2,2,1", [2, 1]),
    ],
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "0", "4-1", "-1", "1.5", "a", "1,,2"])
def test_seeds_that_mean_nothing(text: str) -> None:
    with pytest.raises(ArgumentError, match="a count"):
        parse_seeds(text)
