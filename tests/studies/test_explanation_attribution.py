"""Attribution against formulas worked out by hand."""

from typing import get_args

import pytest
import torch
import torchvision
from torch import nn

from gradsurgery.backbones import build_backbone
from gradsurgery.errors import ArgumentError
from gradsurgery.studies.explanation import (
    AttributionMethod,
    attributions,
    best_method,
    embedded_in_plane,
    last_map,
)


class _Averaged(nn.Module):
    """A convolution, the mean of its map, a linear layer."""

    def __init__(self):
        super().__init__()
        self.maps = nn.Conv2d(3, 2, 1, bias=False)
        self.more = nn.Conv2d(2, 2, 1, bias=False)
        self.head = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.maps.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])[:, :, None, None])
            self.more.weight.copy_(torch.eye(2)[:, :, None, None])
            self.head.weight.copy_(torch.tensor([[3.0, -1.0], [0.0, 2.0]]))

    def forward(self, x):
        return self.head(self.more(self.maps(x)).mean((2, 3)))


def test_grad_cam_is_the_maps_weighed_by_their_mean_gradients():
    # ∂z_0/∂A_k = (3, −1)/9 at each of 9 places, so that the map is ReLU(3·red − green)/9
    image = torch.zeros(1, 3, 3, 3)
    image[0, 0, 0, 0], image[0, 0, 1, 1], image[0, 1, 2, 2] = 2.0, 1.0, 5.0
    found = attributions(_Averaged(), image, torch.tensor([0]), "grad-cam")
    right = torch.zeros(1, 3, 3)
    right[0, 0, 0], right[0, 1, 1] = 1.0, 0.5  # 6 and 3, divided by 6
    torch.testing.assert_close(found, right)


def test_integrated_gradients_of_a_linear_network_are_weight_times_input():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.arange(24.0).view(2, 12))
    image = torch.ones(1, 3, 2, 2)
    found = attributions(model, image, torch.tensor([1]), "integrated-gradients")
    # weights 12 … 23, by channel 12–15, 16–19, 20–23; summed over the channels 48, 51, 54, 57
    torch.testing.assert_close(found, torch.tensor([[[48.0, 51.0], [54.0, 57.0]]]) / 57)


class _Tokens(nn.Module):
    """Two convolutions, a normalisation of the pooled map, and a linear layer on its places."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 2)
        nn.init.normal_(self.norm.weight)

    def forward(self, x):
        x = self.norm(nn.functional.avg_pool2d(self.second(self.first(x)), 2))
        return self.head(x.flatten(2).transpose(1, 2).contiguous()).tanh().sum(1)


@pytest.mark.parametrize("method", get_args(AttributionMethod))
def test_one_image_alone_has_the_map_that_it_has_beside_another(method):
    torch.manual_seed(0)
    model, images, classes = _Tokens().eval(), torch.randn(2, 3, 12, 12), torch.tensor([0, 1])
    both = attributions(model, images, classes, method)
    alone = [attributions(model, images[[i]], classes[[i]], method) for i in range(2)]
    torch.testing.assert_close(torch.cat(alone), both)


@pytest.mark.parametrize("method", get_args(AttributionMethod))
def test_maps_lie_between_0_and_1_and_the_model_stays_as_it_was(method):
    model = build_backbone("small-cnn", classes=3, weights="none", seed=0, image_size=14).model
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.eval()
    found = attributions(model, torch.randn(4, 3, 14, 14), torch.tensor([0, 1, 2, 0]), method)
    assert found.shape == (4, 14, 14)
    assert found.min() >= 0
    assert found.max() <= 1
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())


def test_a_class_that_nothing_speaks_for_has_an_empty_map():
    image = torch.zeros(1, 3, 3, 3)
    image[0, 1] = 1.0  # green speaks against class 0 everywhere
    assert not attributions(_Averaged(), image, torch.tensor([0]), "grad-cam").any()


def test_the_last_convolution_has_a_map_of_several_places():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1),
        nn.Flatten(),
    )  # fmt: skip
    assert last_map(model, torch.zeros(1, 3, 8, 8)) == "1"


@pytest.mark.parametrize(("name", "places"), [("alexnet", 6), ("vgg11", 7)])
def test_a_map_that_is_pooled_and_repeated_is_not_the_last(name, places):
    """With images of 112 pixels, whose pooled map of 2 or 3 places a side becomes 6 or 7 again."""
    model = getattr(torchvision.models, name)(num_classes=2).eval()
    image = torch.zeros(1, 3, 112, 112)
    layer = model.get_submodule(last_map(model, image))
    assert isinstance(layer, nn.ReLU)
    assert model.features[:-1](image).shape[2:] == (places, places)
    assert layer is model.features[-2]


class _Residual(nn.Module):
    """As torchvision's blocks are: one activation for several places, and a sum before it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.second(self.relu(self.first(x))) + x)


@pytest.mark.parametrize("last", ["norm", "block"])
def test_the_map_is_that_which_later_layers_see(last):
    """Weights α_k of a mean that a linear layer takes are its own: the map is ReLU(Σ w_k A_k)."""
    torch.manual_seed(0)
    end = _Residual() if last == "block" else nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(True))
    body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), end)
    model = nn.Sequential(body, nn.MaxPool2d(1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(4, 2)).eval()  # fmt: skip
    if last == "norm":  # what comes before it is below 0 everywhere
        with torch.no_grad():
            body[1].bias.fill_(-50)
            end[0].running_mean.fill_(-50)
    images = torch.randn(3, 3, 6, 6)
    expected = torch.relu((body(images) * model[4].weight[1][:, None, None]).sum(1)).detach()
    found = attributions(model, images, torch.ones(3, dtype=torch.int64), "grad-cam")
    assert expected.amax((1, 2)).min() > 0
    torch.testing.assert_close(found, expected / expected.amax((1, 2), keepdim=True))


def test_where_the_only_convolution_cuts_patches_there_are_integrated_gradients():
    model = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.Flatten(), nn.Linear(16, 3))
    image = torch.ones(1, 3, 8, 8)
    assert best_method(model, image) == "integrated-gradients"
    with pytest.raises(ArgumentError, match="no convolution late enough for Grad-CAM"):
        attributions(model, image, torch.tensor([0]), "grad-cam")


def test_features_of_two_groups_lie_apart_in_the_plane():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(24, 5, generator=generator)
    features[12:] += 30
    spots = torch.tensor(embedded_in_plane(features, 0))
    inner = torch.cdist(spots[:12], spots[:12]).max(), torch.cdist(spots[12:], spots[12:]).max()
    assert torch.cdist(spots[:12], spots[12:]).min() > max(inner) / 2
    assert embedded_in_plane(features, 0) == embedded_in_plane(features, 0)


def test_three_images_make_no_map():
    with pytest.raises(ArgumentError, match="t-SNE needs 4 images or more, found 3"):
        embedded_in_plane(torch.randn(3, 5), 0)
