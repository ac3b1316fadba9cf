"""Autocast, loss scaling, and what is said of numbers that are not finite."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn

from gradsurgery.algorithms import METHODS, OTHER_METHODS
from gradsurgery.errors import NonFiniteError
from tests.algorithms import oracles
from tests.engine.models import MODELS, domain_batches

ALL = [*METHODS, *OTHER_METHODS]
POOLED = ["deep-all", "irm", "vrex", "group-dro", "eqrm", "fishr", "gradnorm", "cdann"]


def moved(model: nn.Module, start: nn.Module) -> torch.Tensor:
    return oracles.flat_parameters(model) - oracles.flat_parameters(start)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["deep-all", "fishr", "agr-sum", "irm+pcgrad"])
def test_autocast_changes_a_step_by_its_rounding(name, dtype, built):
    steps = []
    for narrow in (False, True):
        model = MODELS["mlp"]()
        options = {"autocast": partial(torch.autocast, "cpu", dtype=dtype)} if narrow else {}
        if narrow and dtype is torch.float16:
            options["scaler"] = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        # Mean, where rounding moves a component and does not turn it on or off.
        result = built(name.replace("agr-sum", "erm+sum")).step(
            model, domain_batches(3), oracles.sgd(model.parameters()), step=1, **options
        )
        assert result.losses.dtype == torch.float32
        steps.append(moved(model, MODELS["mlp"]()))
    epsilon = torch.finfo(dtype).eps
    assert 0 < (steps[0] - steps[1]).norm() < 8 * epsilon * steps[0].norm()


# SAND-mask's spread is in units of the gradient, and so is what Agr-EMA remembers.
EQUIVARIANT = [name for name in ALL if name not in ("sand-mask", "agr-ema")]


@pytest.mark.parametrize("name", [*EQUIVARIANT, "mldg+agr-sum", "group-dro+mgda"])
def test_the_loss_scale_cancels(name, built):
    ends = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**12)):
        model, algorithm = oracles.network(), built(name)
        optimizer = oracles.sgd(model.parameters())
        for step in (1, 2):
            data = oracles.batches(3, seed=step)
            result = algorithm.step(model, data, optimizer, step=step, scaler=scaler)
        assert (result.losses < 100).all()
        ends.append(oracles.flat_parameters(model))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["deep-all", "agr-sum", "mldg", "mldg+agr-sum", "vrex", "fish"])
def test_a_step_that_overflows_is_skipped_and_the_scale_is_lowered(name, built):
    model = oracles.network().float()
    data = [(x.float(), y) for x, y in oracles.batches(3)]
    scaler = torch.amp.GradScaler("cpu", init_scale=3e38)
    before = oracles.flat_parameters(model)
    algorithm, optimizer = built(name), oracles.sgd(model.parameters())
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: gradient * 1e3)
    algorithm.step(model, data, optimizer, step=1, scaler=scaler)
    assert torch.equal(oracles.flat_parameters(model), before)
    assert scaler.get_scale() < 3e38


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("name", ["dann", "cdann", "group-dro", "gradnorm", "fishr"])
def test_nothing_is_learned_of_a_step_that_is_not_taken(name, scaled, built):
    """A loss scaler skips it, or the error on its gradient is caught."""
    model = oracles.network().float()
    data, others = ([(x.float(), y) for x, y in oracles.batches(3, seed=seed)] for seed in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if scaled else None
    algorithm, optimizer = built(name), oracles.sgd(model.parameters())
    expected = nullcontext() if scaled else pytest.raises(NonFiniteError)

    def not_taken() -> None:
        before = {key: value.clone() for key, value in algorithm.state_dict().items()}
        handle = model[1].bias.register_hook(lambda gradient: gradient * torch.nan)
        with expected:
            algorithm.step(model, others, optimizer, step=1, scaler=scaler)
        handle.remove()
        after = algorithm.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(after[key], value) for key, value in before.items())

    not_taken()
    algorithm.step(model, data, optimizer, step=1, scaler=scaler)
    assert algorithm.state_dict()
    not_taken()


@pytest.mark.parametrize("batch_norm", ["frozen", "per-domain"])
@pytest.mark.parametrize("domain", [0, 1, 2])
@pytest.mark.parametrize("name", [*POOLED, "agr-sum", "mldg", "fish", "vrex+pcgrad"])
def test_a_domain_that_is_not_finite_is_named(name, domain, batch_norm, built):
    model, data = oracles.network(), oracles.batches(3)
    data[domain][0][:] = torch.nan
    algorithm = built(name, batch_norm=batch_norm)
    with pytest.raises(NonFiniteError) as caught:
        algorithm.step(model, data, oracles.sgd(model.parameters()), step=1)
    assert caught.value.domain == domain
    assert f"the loss of domain {domain} is nan" in str(caught.value).lower()
    assert algorithm.state_dict() == {}


@pytest.mark.parametrize("name", ["deep-all", "agr-sum", "fish"])
def test_a_gradient_that_is_not_finite_names_the_parameter(name, built):
    model = oracles.network()
    model[1].bias.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(NonFiniteError) as caught:
        built(name).step(model, oracles.batches(2), oracles.sgd(model.parameters()), step=1)
    assert caught.value.parameter == "1.bias"
    assert "at parameter 1.bias is NaN or infinite; lower the learning rate" in str(caught.value)
    first = torch.randperm(2, generator=torch.Generator().manual_seed(7))[0].item()
    assert caught.value.domain == {"deep-all": None, "agr-sum": 0, "fish": first}[name]
    assert ("pooled domains" in str(caught.value)) == (name == "deep-all")
