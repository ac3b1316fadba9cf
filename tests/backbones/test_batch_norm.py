import inspect

import pytest
import torch
from torch import nn

from gradsurgery.backbones import (
    build_backbone,
    check_batch_size,
    has_batch_norm,
    set_training_mode,
)
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


def check(model, images, size, mode="per-domain", domains=3):
    check_batch_size(model, mode, batch_size=images, domains=domains, image_size=size)


def narrow():
    """Batch norm over one value a channel and image; and over as many as there are pixels."""
    wide = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4))
    return nn.Sequential(wide, pooled, nn.Linear(4, 3))


def test_one_value_a_channel_is_refused_before_torch_does():
    model = narrow()
    model[1].eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ArgumentError, match="1 image leaves BatchNorm1d a single value"):
        check(model, 1, 8)
    assert [layer.training for layer in model] == [True, False, True]
    assert not any(layer._forward_pre_hooks for layer in model.modules())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model.train()(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(("images", "size"), [(2, 8), (7, 8)])
def test_two_images_or_more_will_do(images, size):
    model = narrow()
    check(model, images, size)
    model(torch.zeros(images, 3, size, size))


def test_one_image_of_several_pixels_will_do():
    model = narrow()[0]
    check(model, 1, 2)
    model(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ArgumentError, match="BatchNorm2d"):
        check(model, 1, 1)


def test_networks_that_normalise_no_single_image_take_one():
    check(nn.Linear(3, 1), 1, 8)
    check(narrow(), 1, 8, "frozen")
    check(narrow(), 1, 8, "pooled", domains=2)
    with pytest.raises(ArgumentError, match="batch size of 2"):
        check(narrow(), 1, 8, "pooled", domains=1)
