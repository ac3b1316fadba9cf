import inspect

import pytest
import torch
from torch import nn

from gradsurgery.backbones import build_backbone, has_batch_norm, set_training_mode
from gradsurgery.errors import ArgumentError


def timm_layer():
    from timm.layers import BatchNormAct2d

    return BatchNormAct2d(3)


LAYERS = {
    "1d": lambda: nn.BatchNorm1d(3),
    "2d": lambda: nn.BatchNorm2d(3),
    "3d": lambda: nn.BatchNorm3d(3),
    "lazy": nn.LazyBatchNorm2d,
    "synchronised": lambda: nn.SyncBatchNorm(3),
    "timm": timm_layer,
}


@pytest.mark.parametrize("layer", LAYERS)
def test_every_kind_of_batch_norm_is_found_and_frozen(layer):
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(LAYERS[layer]()), nn.Dropout())
    assert has_batch_norm(model)
    set_training_mode(model, "frozen")
    assert not model[1][0].training
    assert model[0].training
    assert model[2].training
    set_training_mode(model, "per-domain")
    assert model[1][0].training


@pytest.mark.parametrize("layer", [nn.GroupNorm(1, 3), nn.LayerNorm(3), nn.InstanceNorm2d(3)])
def test_other_norms_are_no_batch_norm(layer):
    assert not has_batch_norm(nn.Sequential(nn.Conv2d(3, 3, 1), layer))


@pytest.fixture(scope="module")
def residual():
    return build_backbone("test_resnet", classes=3, weights="none", seed=0).model


def statistics(model):
    return {
        key: value.clone()
        for key, value in model.state_dict().items()
        if "running" in key or key.endswith("tracked")
    }


@pytest.mark.parametrize("mode", ["frozen", "per-domain"])
def test_running_statistics_change_per_domain_only_and_the_affine_part_always_trains(
    residual, mode
):
    before = statistics(residual)
    residual.zero_grad()
    set_training_mode(residual, mode)
    residual(torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))).sum().backward()
    after = statistics(residual)
    assert before
    unchanged = [torch.equal(before[key], after[key]) for key in before]
    assert all(unchanged) if mode == "frozen" else not any(unchanged)
    affine = [m.weight.grad for m in residual.modules() if isinstance(m, nn.BatchNorm2d)]
    assert affine
    assert all(gradient is not None for gradient in affine)
    assert any(gradient.abs().sum() > 0 for gradient in affine)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ArgumentError, match=r"'shared'.*'frozen', 'per-domain' or 'pooled'"):
        # Unwrapped of the checks of types that the tests put around it.
        inspect.unwrap(set_training_mode)(nn.Linear(1, 1), "shared")
