"""How many forward passes a step makes, and that one for all domains takes the same steps."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gradsurgery.algorithms import OBJECTIVES
from gradsurgery.backbones import set_training_mode
from gradsurgery.errors import ArgumentError
from tests.algorithms import oracles
from tests.engine.models import MODELS, domain_batches


def forward_passes(model: nn.Module, step) -> list[int]:
    """How many images went through the model in each of its passes."""
    seen: list[int] = []
    handle = model.register_forward_hook(lambda _, images, __: seen.append(len(images[0])))
    step()
    handle.remove()
    return seen


@pytest.mark.parametrize("rule", ["sum", "agr-sum", "pcgrad", "median"])
@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_every_objective_and_kind_of_rule_takes_the_same_steps(objective, rule, built):
    after = []
    for batch_norm in ("per-domain", "pooled"):
        model = oracles.network()
        algorithm = built(f"{objective}+{rule}", batch_norm=batch_norm)
        results = []
        for step in (1, 2):
            data = oracles.batches(3, seed=step)
            optimizer = oracles.sgd(model.parameters())
            results.append(algorithm.step(model, data, optimizer, step=step).losses)
        after.append((oracles.flat_parameters(model), torch.stack(results)))
    torch.testing.assert_close(after[1], after[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "batch_norm", "expected"),
    [
        ("agr-sum", "frozen", [5, 5, 5]),
        ("agr-sum", "pooled", [15]),
        ("agr-sum", "per-domain", [5, 5, 5]),
        ("deep-all", "frozen", [15]),
        ("deep-all", "pooled", [15]),
        ("deep-all", "per-domain", [5, 5, 5]),
        ("gradnorm+agr-sum", "pooled", [15]),
        ("fishr+pcgrad", "pooled", [15]),
        ("mldg", "per-domain", [5] * 6),
        ("fish", "frozen", [5, 5, 5]),
    ],
)
def test_how_many_passes_are_made(name, batch_norm, expected, built):
    model, data = oracles.network(), oracles.batches(3, size=5)
    algorithm = built(name, batch_norm=batch_norm)
    optimizer = oracles.sgd(model.parameters())
    for step in (1, 2):
        seen = forward_passes(
            model, lambda step=step: algorithm.step(model, data, optimizer, step=step)
        )
        assert seen == expected


@pytest.mark.parametrize("name", ["deep-all", "agr-sum", "pcgrad", "median"])
def test_pooled_batch_normalisation_is_by_the_batches_of_all_domains(name, built):
    model, data = MODELS["cnn-batch-norm"](), domain_batches(3)
    set_training_mode(model, "pooled")
    algorithm = built(name, batch_norm="pooled")
    algorithm.step(model, data, oracles.sgd(model.parameters()), step=1)
    start = MODELS["cnn-batch-norm"]()
    mean = start[0](torch.cat([x for x, _ in data])).mean((0, 2, 3))
    torch.testing.assert_close(model[1].running_mean, 0.1 * mean)  # one update, by its momentum


@pytest.mark.parametrize("name", ["mldg", "mldg+agr-sum", "fish"])
def test_methods_that_need_passes_of_their_own_refuse_one_for_all(name, built):
    with pytest.raises(ArgumentError, match="needs passes of its own, found batch_norm 'pooled'"):
        built(name, batch_norm="pooled")


@pytest.mark.parametrize("name", ["deep-all", "agr-sum", "mldg"])
def test_a_model_that_gives_no_tensor_is_refused_with_the_cure(name, built):
    class Output(nn.Linear):
        def forward(self, x):
            return SimpleNamespace(logits=super().forward(x.flatten(1)))

    model = Output(12, 3).double()
    with pytest.raises(ArgumentError, match=r"gives a SimpleNamespace, .* e.g. its .logits"):
        built(name).step(model, oracles.batches(2), oracles.sgd(model.parameters()), step=1)


@pytest.mark.parametrize("name", ["deep-all", "agr-sum", "fish", "mldg", "mixup", "fishr"])
def test_one_image_is_no_batch_to_normalise_by(name, built):
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 3)).double()
    method, optimizer = built(name, batch_norm="per-domain"), oracles.sgd(model.parameters())
    with pytest.raises(ArgumentError, match=r"1 image .* a single value a channel .* 2 images"):
        method.step(model, oracles.batches(3, 1), optimizer, step=1)


class Tokens(nn.Module):
    """A normalisation whose places a linear layer takes as tokens, as in LeViT and XCiT."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 4, 1), norm, nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x)).flatten(2).transpose(1, 2).contiguous()
        return self.last(x).tanh().sum(1)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.InstanceNorm2d])
@pytest.mark.parametrize("name", ["agr-sum", "mldg", "fish"])
def test_one_image_has_the_gradient_of_two_equal_ones(name, kind, built):
    torch.manual_seed(0)
    norm = kind(4, affine=True).eval()
    nn.init.normal_(norm.weight)
    one = Tokens(norm).double()
    two = deepcopy(one)
    data = oracles.batches(3, 1)
    twice = [(x.repeat(2, 1, 1, 1), y.repeat(2)) for x, y in data]
    for model, batches in ((one, data), (two, twice)):
        built(name).step(model, batches, oracles.sgd(model.parameters()), step=1)
    torch.testing.assert_close(oracles.flat_parameters(one), oracles.flat_parameters(two))


def test_another_error_on_one_image_stays_as_it_is(built):
    class Picky(nn.Sequential):
        def forward(self, x):
            raise ValueError("no pictures of cats")

    model = Picky(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 3)).double()
    method, optimizer = built("agr-sum", batch_norm="per-domain"), oracles.sgd(model.parameters())
    with pytest.raises(ValueError, match="no pictures of cats"):
        method.step(model, oracles.batches(3, 1), optimizer, step=1)


def test_mixup_needs_batches_of_one_size(built):
    model, optimizer = oracles.network(), oracles.sgd
    data = [oracles.batches(2, size)[d] for d, size in enumerate((4, 6))]
    with pytest.raises(ArgumentError, match=r"\[4, 3, 2, 2\], \[6, 3, 2, 2\]; give every domain"):
        built("mixup").step(model, data, optimizer(model.parameters()), step=1)
    before = oracles.network()
    built("deep-all").step(model, data, optimizer(model.parameters()), step=1)
    mean = torch.stack(oracles.risks(before, data)).mean()  # of the domains, not of the images
    moved = -oracles.LEARNING_RATE * oracles.flat_gradient(mean, before)
    expected = oracles.flat_parameters(before) + moved
    torch.testing.assert_close(oracles.flat_parameters(model), expected)
