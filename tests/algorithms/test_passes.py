"""One pass for all domains against one for each."""

import pytest
import torch
from torch import nn

from gradsurgery.algorithms import OBJECTIVES, Combined
from gradsurgery.algorithms import combined as combined_module
from gradsurgery.backbones import set_training_mode
from gradsurgery.errors import ArgumentError
from tests.algorithms import oracles
from tests.engine.models import MODELS, domain_batches

ONE_PASS = sorted(set(OBJECTIVES) - {"mldg", "gradnorm"})


def pooled_forward_passes(model: nn.Module, step) -> list[int]:
    """How many images went through the model in each of its passes in training."""
    seen: list[int] = []
    handle = model.register_forward_hook(
        lambda layer, images, _: seen.append(len(images[0])) if layer.training else None
    )
    step()
    handle.remove()
    return seen


@pytest.mark.parametrize("rule", ["sum", "agr-sum", "pcgrad", "median"])
@pytest.mark.parametrize("objective", ONE_PASS)
def test_every_objective_and_kind_of_rule_takes_the_same_steps(objective, rule, built):
    after = []
    for passes in ("separate", "pooled"):
        model = oracles.network()
        algorithm = built(f"{objective}+{rule}", passes=passes)
        results = []
        for step in (1, 2):
            data = oracles.batches(3, seed=step)
            optimizer = oracles.sgd(model.parameters())
            results.append(algorithm.step(model, data, optimizer, step=step).losses)
        after.append((oracles.flat_parameters(model), torch.stack(results)))
    torch.testing.assert_close(after[1], after[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "passes", "size", "expected"),
    [
        ("agr-sum", "auto", 3, [9]),
        ("agr-sum", "auto", 5, [5, 5, 5]),
        ("agr-sum", "pooled", 5, [15]),
        ("agr-sum", "separate", 3, [3, 3, 3]),
        ("deep-all", "auto", 5, [15]),
        ("deep-all", "pooled", 5, [15]),
        ("deep-all", "separate", 3, [3, 3, 3]),
        ("gradnorm+agr-sum", "auto", 3, [3, 3, 3]),
        ("gradnorm", "pooled", 3, [9]),
    ],
)
def test_how_many_passes_are_made(name, passes, size, expected, built, monkeypatch):
    monkeypatch.setattr(combined_module, "FASTER_POOLED", 4)
    model, data = oracles.network(), oracles.batches(3, size=size)
    algorithm = built(name, passes=passes)
    optimizer = oracles.sgd(model.parameters())
    for step in (1, 2):
        seen = pooled_forward_passes(
            model, lambda step=step: algorithm.step(model, data, optimizer, step=step)
        )
        assert seen == expected


def test_auto_is_exact(built, monkeypatch):
    monkeypatch.setattr(combined_module, "FASTER_POOLED", 100)
    model, data = MODELS["cnn-batch-norm"](), domain_batches(3)
    algorithm, optimizer = built("agr-sum"), oracles.sgd(model.parameters())
    assert isinstance(algorithm, Combined)

    def step():
        algorithm.step(model, data, optimizer, step=1)

    set_training_mode(model, "per-domain")
    assert pooled_forward_passes(model, step) == [4, 4, 4]
    set_training_mode(model, "frozen")
    assert pooled_forward_passes(model, step) == [12]
    model[1] = nn.Sequential(nn.PReLU(6))  # whose gradients would take a pass per domain anyway
    assert pooled_forward_passes(model, step) == [4, 4, 4]


@pytest.mark.parametrize("name", ["mldg", "mldg+agr-sum", "gradnorm+agr-sum", "fish"])
def test_methods_that_need_passes_of_their_own_refuse_one_for_all(name, built):
    with pytest.raises(ArgumentError, match="found passes 'pooled'; use 'auto'"):
        built(name, passes="pooled")
