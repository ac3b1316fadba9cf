import json
from collections.abc import Callable
from pathlib import Path

import pytest

# Figures are rendered in tests/report and tests/website.
pytestmark = pytest.mark.usefixtures("unrendered")

SHORT = ["--iterations", "6", "--validate-every", "3", "--batch-size", "8"]
SHORT += ["--image-size", "12", "--device", "cpu"]
Command = Callable[..., tuple[int, str, str]]


def test_compare_trains_the_grid_prints_the_table_and_repeats_nothing(
    command: Command, tmp_path: Path
) -> None:
    arguments = ["compare", "rotated-digits", "--methods", "deep-all,agr-sum", "--targets"]
    arguments += ["75,0", "--seeds", "2", *SHORT, "--out", "runs"]
    code, out, err = command(*arguments)
    assert code == 0
    told = [f"[{n}/8" for n in range(1, 9)]
    assert [line.split("]")[0] for line in err.splitlines()] == [*told, "runs: runs"]
    assert err.count("accuracy on") == 8
    found = sorted(str(p.parent.relative_to(tmp_path)) for p in tmp_path.glob("**/record.json"))
    assert [place.rpartition("-")[0] for place in found] == [
        f"runs/rotated-digits/{target}/{method}/seed-{seed}"
        for target in ("0", "75")
        for method in ("agr-sum", "deep-all")
        for seed in (0, 1)
    ]
    assert "deep-all" in out
    assert "runs: runs" not in out  # which may be piped
    assert not (tmp_path / "runs" / "report").exists()
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("**/record.json")}
    assert command(*arguments) == (0, out, "runs: runs\n")
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.glob("**/record.json")}


def test_compare_goes_on_after_a_failure_and_reports_it(command: Command, tmp_path: Path) -> None:
    arguments = ["compare", "rotated-digits", "--methods", "deep-all,agr-sum", "--targets", "75"]
    arguments += ["--seeds", "1", *SHORT, "--out", "runs", "--workers", "1"]
    command(*arguments)
    (failing,) = tmp_path.glob("runs/rotated-digits/75/deep-all/*")
    (failing / "record.json").unlink()
    (failing / "checkpoint.pt").mkdir()
    code, out, err = command(*arguments)
    assert code == 1
    assert "agr-sum" in out
    last = err.splitlines()[-1]
    assert last.startswith("error: 1 run failed, rotated-digits/75/deep-all/seed-0-")
    assert "checkpoint.pt is damaged" in last
    assert json.loads((failing / "failure.json").read_text())["attempts"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "deep-all,agr"], "unknown method 'agr'"),
        (["--targets", "75,90"], "no domain '90'"),
        (["--seeds", "three"], "error: seeds must be a count"),
        (["--methods", ","], "methods must have at least 1 item"),
        (["--workers", "0"], "--workers is at least 1"),
    ],
)
def test_compare_checks_the_grid_before_any_run(
    arguments: list[str], words: str, command: Command, tmp_path: Path
) -> None:
    code, out, err = command("compare", "rotated-digits", *arguments, *SHORT)
    assert (code, out) == (1, "")
    assert words in err
    assert not list(tmp_path.glob("**/record.json"))


def test_an_average_goes_with_every_method_of_a_comparison(
    command: Command, tmp_path: Path
) -> None:
    arguments = ["compare", "rotated-digits", "--targets", "75", "--seeds", "1", *SHORT]
    arguments += ["--methods", "deep-all,group-dro", "--set", "group-dro.eta=0.5"]
    arguments += ["--workers", "1", "--average"]
    code, out, err = command(*arguments, "swad", "--set", "swad.optimum_patience=2")
    assert code == 0, err
    averaged = [
        json.loads(path.read_text())["result"]["best"]["averaged_from"]
        for path in tmp_path.glob("**/record.json")
    ]
    assert averaged == [1, 1]
    settings = [
        json.loads(path.read_text())["configuration"]["settings"]
        for path in sorted(tmp_path.glob("**/record.json"))
    ]
    average = {"swad.optimum_patience": 2}
    assert settings == [average, {"group-dro.eta": 0.5, **average}]
    code, out, err = command(*arguments, "ema", "--set", "swad.optimum_patience=2")
    assert (code, out) == (1, "")
    assert "swad.optimum_patience is set and the average is 'ema'" in err


def test_a_domain_with_a_comma_is_quoted(
    command: Command, make_folder: Callable[..., Path]
) -> None:
    make_folder(Path("photos"), ("a, b", "c", "d"), "xy", each=1)
    code, _, err = command("compare", "photos", "--targets", "a, b", *SHORT)
    assert code == 1
    assert err == (
        "error: photos has no domain 'a'; its domains are a, b, c, d; in a list of targets "
        "a name with a comma is quoted: '\"a, b\",c'\n"
    )
    code, out, _ = command("compare", "photos", "--targets", '"a, b"', "--print-config")
    assert (code, "targets:\n- a, b\n" in out) == (0, True)
