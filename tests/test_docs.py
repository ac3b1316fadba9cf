"""What README and docs tell people to type works."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
import yaml
from PIL import Image
from safetensors.torch import load_file

import gradsurgery as gs
from gradsurgery.algorithms import OBJECTIVES
from gradsurgery.cli.main import app
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.plan import Plan
from gradsurgery.rules import RULES
from gradsurgery.training import train

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EVIDENCE = sorted((ROOT / "docs" / "evidence").glob("*.md"))


def blocks(language: str, pages: list[Path] = PAGES) -> list[str]:
    text = "\n".join(page.read_text() for page in pages)
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [text for marked, text in found if marked == language]


def python_examples() -> list[str]:
    # the code of extending.md is run by test_other_packages.py
    return blocks("python", [page for page in PAGES if page.stem != "extending"])


def commands() -> list[str]:
    text = "\n".join(blocks("", PAGES + EVIDENCE)).replace("\\\n", " ")
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line.startswith("gradsurgery ")]


@pytest.mark.parametrize("command", commands())
def test_commands_have_the_options_they_are_shown_with(command):
    group = typer.main.get_command(app)
    words = shlex.split(command)[1:]
    context = group.make_context("gradsurgery", words, resilient_parsing=True)
    while hasattr(group, "resolve_command"):
        name, group, words = group.resolve_command(context, words)
        parsed = group.make_context(name, list(words), resilient_parsing=hasattr(group, "commands"))
    assert parsed.info_name in command


class OfImages(torch.nn.Linear):
    def forward(self, images):
        return super().forward(images.flatten(1))


@pytest.mark.parametrize("code", python_examples())
def test_python_examples_run(code):
    model = OfImages(3, 2)
    labels = torch.zeros(4).long()
    names = {
        "model": model,
        "criterion": torch.nn.CrossEntropyLoss(),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "torch": torch,
        "domain_batches": [(torch.full((4, 3, 1, 1), d), labels) for d in (1.0, 2.0)],
    }
    before = model.weight.detach().clone()
    exec(code, names)
    trains = "optimizer" in code
    assert torch.equal(model.weight, before) is not trains


@pytest.fixture
def shop(tmp_path, monkeypatch, capsys):
    """A folder with shop_photos, and a run on them that is as short as can be."""
    monkeypatch.setenv("GRADSURGERY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for place in ("shop_a/cup", "shop_a/hat", "shop_b/cup", "shop_b/hat", "shop_c/cup"):
        for name in (*(f"{place}/{i}.png" for i in range(4)), "shop_c/hat/1.png"):
            path = Path("shop_photos", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 256, (12, 15, 3), dtype=np.uint8)
            for file in (path, Path("a.jpg"), Path("b.png")):
                Image.fromarray(pixels).save(file)
    for i in range(3):
        Image.fromarray(pixels).save(f"shop_photos/shop_c/hat/{i}.png")
    options = {"iterations": 1, "batch_size": 2, "image_size": 12, "device": "cpu"}
    options |= {"backbone": "small-cnn", "weights": "none"}
    run = Path("runs/shop_photos/shop_c/agr-sum/seed-0")
    train(RunConfiguration(data="shop_photos", target="shop_c", **options), run)
    for copy in ("theirs", "again"):
        shutil.copytree(run, copy)
    older = RunConfiguration(data="shop_photos", target="shop_c", seed=1, **options)
    train(older, Path("deployments/april/model"))
    return run


def test_a_model_is_used_as_the_pages_say(shop, capsys):
    names: dict = {}
    gs.export_model(gs.load_model(shop), "model.onnx")
    for code in blocks("py"):
        exec(code, names)
    saved = load_file(shop / "model.safetensors")
    state = names["model"].module.state_dict()
    assert all(torch.equal(state[key], value) for key, value in saved.items())
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 10
    assert said[9].startswith("True {'gradsurgery': ")
    assert set(eval(said[0])) <= {"cup", "hat"}
    assert said[2] == "(2, 2)"
    pixels = names["model"].preprocess.pixels("a.jpg")
    assert np.array_equal(names["picture"], pixels)
    assert said.count(eval(said[0])[0]) == 1  # of model.onnx
    assert names["logits"].shape == (7, 2)
    assert names["evaluation"].domains["shop_c"].tally.images == 7
    assert names["pairs"].images == 7  # of a domain that neither was trained on
    assert names["cells"].loc["shop_photos", "shop_c", "agr-sum"]["mean"] <= 1
    assert names["tried"]["learning_rate"].tolist() == [1e-5]
    assert names["curves"]["step"].tolist() == [1]
    assert set(names["recalls"]["domain"]) == {"shop_a", "shop_b", "shop_c"}
    assert {"cup", "hat"} <= set(names["recalls"])


@pytest.mark.parametrize("text", blocks("yaml"))
def test_plans_are_plans(text):
    assert Plan(**yaml.safe_load(text)).data


def test_no_placeholder_is_left():
    assert not re.search(r"\b[A-Z]+_(OUTPUT|TABLE)\b", PAGES[0].read_text())


@pytest.mark.parametrize("name", [*RULES, *OBJECTIVES, "fish"])
def test_the_page_on_methods_has_every_rule_and_objective(name):
    assert f"`{name}`" in (ROOT / "docs" / "methods.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target
