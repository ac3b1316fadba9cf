"""A package outside of this one brings a rule, an objective, a data source and a backbone."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "extending.md"
FILES = dict(
    re.findall(r"^```python\n# (mypackage/\w+\.py)\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
)
METHOD = "mypackage.objectives:Smoothed+mypackage.rules:Capped"
RUN = ["--target", "b", "--backbone", "mypackage.backbones:tiny", "--weights", "none"]
RUN += ["--iterations", "4", "--validate-every", "2", "--batch-size", "4", "--image-size", "16"]

SEVERAL = """
import json, sys
from gradsurgery.cli.main import run
for words in json.loads(sys.argv.pop()):
    sys.argv = ["gradsurgery", *words]
    try:
        run()
    except SystemExit as end:
        code = end.code or 0
    print("code", code)
sys.exit(code)
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder with an installed package, as pip leaves it."""
    site = tmp_path / "site"
    for name, text in FILES.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    (site / "mypackage" / "__init__.py").write_text("")
    about = site / "mypackage-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mypackage\nVersion: 1.2\n")
    (about / "RECORD").write_text("mypackage/__init__.py,,\n")
    (about / "top_level.txt").write_text("mypackage\n")
    (about / "entry_points.txt").write_text(
        "[gradsurgery.rules]\ncapped = mypackage.rules:Capped\n"
        "[gradsurgery.sources]\nstripes = mypackage.sources:Stripes\n"
        "[gradsurgery.objectives]\nsmoothed = mypackage.objectives:Smoothed\n"
        "[gradsurgery.backbones]\ntiny = mypackage.backbones:tiny\n"
    )
    return site


@pytest.fixture
def gradsurgery(tmp_path: Path, elsewhere: Path) -> Run:
    """Commands, one after the other in a process that finds the package; the last one's code."""

    def run(*commands: list[str], found: bool = True) -> subprocess.CompletedProcess[str]:
        paths = [str(PAGE.parent.parent / "src"), *([str(elsewhere)] if found else [])]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "GRADSURGERY_CACHE": str(tmp_path / "cache"),
        }
        process = [sys.executable, "-c", SEVERAL, json.dumps(commands)]
        return subprocess.run(
            process, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    return run


def test_the_page_has_every_kind() -> None:
    assert set(FILES) == {
        f"mypackage/{name}.py" for name in ("rules", "objectives", "sources", "backbones")
    }


def test_train_with_all_four_and_its_record(gradsurgery: Run, tmp_path: Path) -> None:
    settings = ["--set", "mypackage.rules:Capped.cap=0.5"]
    settings += ["--set", "mypackage.objectives:Smoothed.softness=0.2"]
    named = ["mypackage.sources:Stripes", "--backbone", "mypackage.backbones:tiny"]
    done = gradsurgery(
        ["train", "mypackage.sources:Stripes", "--method", METHOD, *RUN, *settings, "--out", "run"],
        ["diagnose", "--run", "run"],
        ["diagnose", *named, "--run", "run"],
    )
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^code (\d)", done.stdout, re.M) == ["0", "1", "0"]
    assert "give it again as --backbone" in done.stderr
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    about = record["objects"]
    assert {entry["object"] for entry in about} == {
        "mypackage.sources:Stripes",
        "mypackage.objectives:Smoothed",
        "mypackage.rules:Capped",
        "mypackage.backbones:tiny",
    }
    assert {entry["version"] for entry in about} == {"1.2"}
    read = gradsurgery(["show", "run"], ["report", "run", "--out", "report"], found=False)
    assert read.returncode == 0, read.stderr  # reading imports nothing of it
    assert read.stdout.count("code 0") == 2


def test_short_names_of_entry_points_and_a_function_as_a_rule(gradsurgery: Run) -> None:
    short = [part.replace("mypackage.backbones:tiny", "tiny") for part in RUN]
    method = "erm+mypackage.rules:largest"
    done = gradsurgery(
        ["train", "stripes", "--method", "smoothed+capped", *short, "--out", "run"],
        ["train", "mypackage.sources:Stripes", "--method", method, *RUN],
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("code 0") == 2


@pytest.mark.parametrize("launcher", ["local", "ray"])
def test_sweep_in_worker_processes(launcher: str, gradsurgery: Run, tmp_path: Path) -> None:
    if launcher == "ray":
        pytest.importorskip("ray")
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "data: ['mypackage.sources:Stripes']\n"
        f"methods: [deep-all, '{METHOD}']\n"
        "targets: [b]\nseeds: 2\n"
        "options:\n  backbone: 'mypackage.backbones:tiny'\n  weights: none\n  iterations: 4\n"
        "  validate_every: 2\n  batch_size: 4\n  image_size: 16\n"
    )
    arguments = ["--workers", "2", "--out", "sweep", "--launcher", launcher]
    done = gradsurgery(["sweep", "--config", str(plan), *arguments])
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "sweep").rglob("record.json"))) == 4
    assert (tmp_path / "sweep" / "report" / "report.html").exists()
    read = gradsurgery(["report", "sweep", "--out", "again"], found=False)
    assert read.returncode == 0, read.stderr


def test_what_cannot_be_used_is_one_line(gradsurgery: Run) -> None:
    wrong = {
        "has no Absent": ["mypackage.sources:Stripes", "--method", "erm+mypackage.rules:Absent"],
        "sources has no Absent": ["mypackage.sources:Absent", "--method", "deep-all"],
        "no module absent": ["absent.sources:Stripes", "--method", "deep-all"],
        "expected a subclass of": ["mypackage.sources:np", "--method", "deep-all"],
        "expected": ["mypackage.sources:Stripes", "--method", "erm+mypackage.backbones:nn"],
    }
    done = gradsurgery(*(["train", *arguments, *RUN] for arguments in wrong.values()))
    assert done.stdout.count("code 1") == len(wrong)
    for words, line in zip(wrong, done.stderr.splitlines(), strict=True):
        assert words in line
