"""In the trainers of other libraries the update is what the rule makes of the gradients.

Two domains with the same images and opposite labels have, at weights of zero, gradients that are
opposite to the last bit: Agr-Sum leaves nothing of them. Two that agree move the weights.
"""

import json
import re
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from tests.website import stand_ins
from tests.website.conftest import ROOT
from tests.website.page_code import run_code

PAGES = sorted((ROOT / "docs" / "integrations").glob("*.md"))
NEEDED = {"lightning", "transformers", "accelerate", "torchjd"}
"""Pages about a package, by its name."""
X, Y = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]]), torch.tensor([0, 1])
OPPOSED = [(X, Y), (X, 1 - Y)]
AGREEING = [(X, Y), (2 * X, Y)]


def code_of(name: str, monkeypatch) -> dict:
    """What the page's first block defines, up to where it trains."""
    stand_ins.install(monkeypatch)
    text = (ROOT / "docs" / "integrations" / f"{name}.md").read_text(encoding="utf-8")
    block = re.search(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(re.split(r"^(?:def loader|generator =)", block[1], flags=re.MULTILINE)[0], names)
    return names


def zeros() -> nn.Linear:
    linear = nn.Linear(3, 2)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def moved(linear: nn.Linear) -> bool:
    return bool(linear.weight.any() or linear.bias.any())


@pytest.mark.parametrize(("domains", "moves"), [(OPPOSED, False), (AGREEING, True)])
class TestUpdates:
    def test_domainbed(self, domains, moves, monkeypatch):
        algorithm = code_of("domainbed", monkeypatch)["AgrSum"]((3,), 2, 2, {"lr": 1.0})
        algorithm.network.load_state_dict(zeros().state_dict())
        figures = algorithm.update(domains, None)
        assert moved(algorithm.network) is moves
        assert figures["loss"] == pytest.approx(0.693147, abs=1e-6)  # ln 2, at weights of zero

    def test_dassl(self, domains, moves, monkeypatch):
        trainer = code_of("dassl", monkeypatch)["AgrSum"](zeros())
        images, labels = (torch.cat(parts) for parts in zip(*domains, strict=True))
        trainer.forward_backward(
            {"img": images, "label": labels, "domain": torch.tensor([7, 7, 3, 3])}
        )
        assert moved(trainer.model) is moves

    def test_lightning(self, domains, moves, monkeypatch):
        warnings.simplefilter("ignore")  # theirs are not ours to mend
        lightning = pytest.importorskip("lightning", reason="lightning is not installed")
        names = code_of("lightning", monkeypatch)
        module = names["Classifier"]()
        module.network.load_state_dict(zeros().state_dict())
        loaders = {str(d): DataLoader([b], batch_size=None) for d, b in enumerate(domains)}
        lightning.Trainer(max_epochs=1, accelerator="cpu", barebones=True).fit(module, loaders)
        assert moved(module.network) is moves

    def test_transformers(self, domains, moves, monkeypatch, tmp_path):
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")
        pytest.importorskip("accelerate", reason="accelerate is not installed")
        linear = zeros()
        rows = [
            {"x": x, "labels": y, "domain": d}
            for d, (xs, ys) in enumerate(domains)
            for x, y in zip(xs, ys, strict=True)
        ]
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=4, max_steps=1, use_cpu=True,
            remove_unused_columns=False, save_strategy="no", report_to=[], disable_tqdm=True,
        )  # fmt: skip
        trainer = code_of("transformers", monkeypatch)["SurgeryTrainer"]
        trainer(WithLoss(linear), arguments, train_dataset=rows).train()
        assert moved(linear) is moves


def test_domainbeds_results_are_chosen_as_it_does(tmp_path):
    """By hand: the highest mean of the other environments' validation accuracies in each trial."""
    text = (ROOT / "docs" / "integrations" / "domainbed.md").read_text(encoding="utf-8")
    names: dict = {}
    exec(re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[-1], names)

    def write(run, trial, *lines, test_envs=(1,)):
        about = {"dataset": "PACS", "algorithm": "ERM", "test_envs": test_envs, "trial_seed": trial}
        keys = [f"env{env}_{part}_acc" for env in range(3) for part in ("in", "out")]
        found = (dict(zip(keys, values, strict=True)) for values in lines)
        content = [json.dumps({**figures, "args": about}) for figures in found]
        (tmp_path / run).mkdir()
        (tmp_path / run / "results.jsonl").write_text("\n".join(content) + "\n")

    #            in, out of environments 0, 1 (held out) and 2
    write("a", 0, (0.9, 0.5, 0.3, 0.99, 0.9, 0.7), (1.0, 0.7, 0.2, 0.0, 1.0, 0.7))
    write("b", 0, (0.9, 0.6, 0.1, 0.99, 0.9, 0.7))
    write("c", 1, (0.5, 0.4, 0.25, 0.9, 0.5, 0.4))
    write("pair", 1, (1.0, 1.0, 1.0, 1.0, 1.0, 1.0), test_envs=(1, 2))
    assert names["training_domain"](tmp_path) == {("PACS", "ERM", 1): [20.0, 25.0]}


class WithLoss(nn.Module):
    """A model as Hugging Face has them: with labels it gives the loss."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x, labels):
        logits = self.linear(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_runs(page, tmp_path, monkeypatch):
    if page.stem in NEEDED:
        warnings.simplefilter("ignore")
        pytest.importorskip(page.stem, reason=f"{page.stem} is not installed")
    run_code(page, tmp_path, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_five_lines_change_at_most(page):
    for block in re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S):
        numbers = [int(number) for number in re.findall(r"  # (\d)$", block, re.M)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) <= 5
    assert "  # 1\n" in page.read_text("utf-8")
