"""Each method's gradients against an independent calculation."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import gradsurgery as gs
from gradsurgery.algorithms import METHODS, build_algorithm
from gradsurgery.backbones import set_training_mode
from gradsurgery.errors import ArgumentError, NonFiniteError
from tests.engine.models import MODELS, domain_batches, separate_gradients


def built(name: str, **options):
    return build_algorithm(name, generator=torch.Generator().manual_seed(7), **options)


def flat_grad(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("name", ["agr-sum", "agr-rand", "pcgrad"])
def test_surgery_is_the_rule_on_the_domains_gradients(name):
    network = MODELS["mlp"]()
    batches = domain_batches(3)
    result = built(name).backward(network, batches)
    expected = gs.rule(name, generator=torch.Generator().manual_seed(7))
    losses = [cross_entropy(network(x), y).item() for x, y in batches]
    assert result.losses.tolist() == pytest.approx(losses)
    if name != "agr-rand":  # whose noise is laid out by parameter, see the engine's tests
        update = expected(separate_gradients(network, batches))
        torch.testing.assert_close(flat_grad(network), update, rtol=1e-4, atol=1e-7)


def test_deep_all_is_the_gradient_of_the_pooled_batch():
    network = MODELS["mlp"]()
    batches = domain_batches(3)
    result = built("deep-all").backward(network, batches)
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    gradients = torch.autograd.grad(
        cross_entropy(network(images), labels), list(network.parameters())
    )
    torch.testing.assert_close(flat_grad(network), torch.cat([g.reshape(-1) for g in gradients]))
    losses = [cross_entropy(network(x), y).item() for x, y in batches]
    assert result.losses.tolist() == pytest.approx(losses)
    assert result.agreeing is None


@pytest.mark.parametrize("model", sorted(MODELS))
def test_with_frozen_batch_norm_deep_all_is_the_mean_of_the_domains(model):
    batches = domain_batches(3)
    networks = [MODELS[model]() for _ in range(2)]
    for network, passes in zip(networks, (False, True), strict=True):
        set_training_mode(network, "frozen")
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        built("deep-all", per_domain_passes=passes).backward(network, batches)
        optimizer.step()
    for pooled, averaged in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(pooled, averaged, rtol=1e-4, atol=1e-6)


def test_with_batch_norm_per_domain_every_method_normalises_alike():
    batches = domain_batches(3)
    networks = {name: MODELS["cnn-batch-norm"]() for name in METHODS}
    for name, network in networks.items():
        set_training_mode(network, "per-domain")
        built(name, per_domain_passes=True).backward(network, batches)
    means = [network[1].running_mean for network in networks.values()]
    for mean in means[1:]:
        torch.testing.assert_close(mean, means[0])


def test_deep_all_reports_what_is_not_finite():
    network = MODELS["mlp"]()
    batches = domain_batches(2)
    batches[1][0][:] = torch.nan
    with pytest.raises(NonFiniteError):
        built("deep-all").backward(network, batches, autocast=nullcontext)


def test_unknown_method_lists_the_methods():
    with pytest.raises(
        ArgumentError, match=r"unknown method 'erm'; the methods are deep-all, agr-"
    ):
        built("erm")
