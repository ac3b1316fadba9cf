"""A package outside of this one brings a rule, an objective, a source, a backbone, a launcher."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gradsurgery as gs
from tests.algorithms import oracles

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
        "[gradsurgery.launchers]\njobs = mypackage.launchers:Jobs\n"
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
    kinds = (
        "rules",
        "quorum",
        "objectives",
        "warm",
        "alignment",
        "sharpness",
        "sources",
        "backbones",
        "launchers",
    )
    assert set(FILES) == {f"mypackage/{name}.py" for name in kinds}


def written(name: str) -> dict[str, Any]:
    """What a module of the page defines."""
    names: dict[str, Any] = {}
    exec(FILES[f"mypackage/{name}.py"], names)
    return names


def test_the_quorum_of_the_page_by_hand() -> None:
    quorum = written("quorum")["Quorum"]
    columns = [[1, 2, 3, 4, 0], [1, 2, 3, -4, 0], [1, 2, 0, 1, 0], [1, -2, 0, 1, 0]]
    gradients = torch.tensor(columns, dtype=torch.float64)
    for share, expected in ((1, [4, 0, 0, 0, 0]), (0.75, [4, 4, 0, 2, 0]), (0.5, [4, 4, 6, 2, 0])):
        assert quorum(share=share)(gradients).tolist() == expected
    model = torch.nn.Linear(5, 1, bias=False, dtype=torch.float64)
    result = gs.backward((model(g).sum() for g in gradients), model.parameters(), quorum(share=0.7))
    assert model.weight.grad is not None
    assert model.weight.grad.tolist() == [[4, 4, 0, 2, 0]]
    assert result.agreeing == 3 / 4  # the last component is zero in every domain


@pytest.mark.parametrize("rule", ["mean", "sum"])
def test_the_objectives_of_the_page_by_their_formulas(rule: str) -> None:
    data = oracles.batches(3)

    def taken(objective: gs.Objective) -> torch.Tensor:
        model = oracles.network()
        before = oracles.flat_parameters(model)
        method = gs.method(objective, rule=gs.rule(rule))
        method.step(model, data, oracles.sgd(model.parameters()), step=1)
        scale = oracles.LEARNING_RATE * (3 if rule == "sum" else 1)
        return (before - oracles.flat_parameters(model)) / scale

    model = oracles.network()
    risks = torch.stack(oracles.risks(model, data))
    whole = risks.mean() + 0.7 * 1 / 4 * risks.var(correction=0)
    warm = written("warm")["WarmVREx"](penalty=0.7, warm=4)
    torch.testing.assert_close(taken(warm), oracles.flat_gradient(whole, model))

    features = [model[:-1](images) for images, _ in data]
    means = torch.stack([rows.mean(0) for rows in features])
    distance = means.var(0, correction=0).sum()  # whole: the mean over the domains is in the graph
    whole = sum(oracles.risks(model, data)) / 3 + 0.7 * distance
    aligned = written("alignment")["FeatureMeans"](gamma=0.7)
    torch.testing.assert_close(taken(aligned), oracles.flat_gradient(whole, model))

    gradient = oracles.flat_gradient(sum(oracles.risks(model, data)) / 3, model)
    there = oracles.flat_parameters(model) + 0.3 * gradient / gradient.norm()
    torch.nn.utils.vector_to_parameters(there, model.parameters())
    worst = oracles.flat_gradient(sum(oracles.risks(model, data)) / 3, model)
    torch.testing.assert_close(taken(written("sharpness")["SAM"](rho=0.3)), worst)
    assert not torch.allclose(worst, gradient, rtol=0.01)


def test_train_with_the_methods_of_the_page(gradsurgery: Run) -> None:
    methods = [
        "mypackage.quorum:Quorum",
        "mypackage.warm:WarmVREx+agr-sum",
        "mypackage.alignment:FeatureMeans+agr-sum",
        "mypackage.sharpness:SAM",
        "mypackage.sharpness:SAM+mypackage.quorum:Quorum",
    ]
    done = gradsurgery(
        *(["train", "mypackage.sources:Stripes", *RUN, "--method", method] for method in methods)
    )
    assert done.stdout.count("code 0") == len(methods), done.stderr


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


@pytest.mark.parametrize("launcher", ["local", "ray", "jobs"])
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
    commands = [["train", *arguments, *RUN] for arguments in wrong.values()]
    for words, launcher in {
        "unknown launcher 'slurm'; there are local, ray, jobs, and package.module:Name": "slurm",
        "expected a subclass of gradsurgery.sweep.launcher.Launcher": "mypackage.launchers:job",
    }.items():
        wrong[words] = ["compare", "mypackage.sources:Stripes", "--launcher", launcher, *RUN[2:]]
        commands.append(wrong[words])
    done = gradsurgery(*commands)
    assert done.stdout.count("code 1") == len(wrong)
    for words, line in zip(wrong, done.stderr.splitlines(), strict=True):
        assert words in line
