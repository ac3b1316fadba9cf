import urllib.error

import pytest
import torch
from torch import nn
from torch.torch_version import TorchVersion

from gradsurgery.backbones import backbone_names, build_backbone
from gradsurgery.errors import ArgumentError, WeightsError

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def build(name, *, classes=3, weights="none", seed=0, image_size=None):
    return build_backbone(name, classes=classes, weights=weights, seed=seed, image_size=image_size)


@pytest.mark.parametrize(
    ("name", "size", "head", "normalization"),
    [
        ("small-cnn", 28, "classifier", HALF),
        ("small-mlp", 28, "3", HALF),
        ("shufflenet_v2_x0_5", 64, "fc", IMAGENET),
        ("squeezenet1_1", 64, "classifier.1", IMAGENET),
        ("googlenet", 64, "fc", IMAGENET),
        ("inception_v3", 96, "fc", IMAGENET),
        ("test_resnet", 64, "fc", HALF),
        ("test_vit", 64, "head", HALF),
        ("levit_128s", 64, "head.linear", IMAGENET),
    ],
)
def test_plain_logits_also_in_training(name, size, head, normalization):
    backbone = build(name, image_size=size)
    assert (backbone.mean, backbone.std) == normalization
    assert not backbone.pretrained
    assert backbone.weights_digest is None
    assert len(backbone.model.get_submodule(head).weight) == 3
    assert backbone.model.train()(torch.zeros(2, 3, size, size)).shape == (2, 3)


def test_torchvision_wins_a_name_both_have_and_timm_has_its_own_spelling():
    assert type(build("resnet18").model).__module__.startswith("torchvision.")
    assert type(build("timm/resnet18").model).__module__.startswith("timm.")
    names = backbone_names()
    assert {"small-cnn", "small-mlp", "alexnet", "resnet18", "timm/resnet18", "test_vit"} <= set(
        names
    )
    assert len(names) == len(set(names))


def test_a_model_file_may_name_every_network_that_is_not_anybodys_own_code():
    from gradsurgery.backbones.networks import library_has

    assert all(map(library_has, ("small-cnn", "small-mlp", "resnet18", "test_vit")))
    assert not library_has("package.module:network")


def test_weights_come_from_the_seed_alone_and_leave_the_global_state():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build("test_vit", seed=5).model.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = build("test_vit", seed=5).model.state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["head.weight"], build("test_vit", seed=6).model.head.weight)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "alexnett"}, "no backbone 'alexnett'; did you mean alexnet or"),
        ({"name": "q#!"}, "no backbone"),
        ({"name": "timm/alexnet"}, "no backbone 'timm/alexnet'"),
        ({"name": "timm/resnet18.nonesuch"}, "nonesuch"),
        ({"name": "small-cnn", "classes": 0}, "classes is 0"),
        ({"name": "small-cnn", "weights": ""}, "weights is empty"),
        ({"name": "small-mlp"}, "give an image_size"),
        ({"name": "test_vit", "image_size": 50}, "test_vit cannot .* 50 pixels"),
        ({"name": "vit_b_32", "image_size": 50}, "vit_b_32 cannot be built .* 50 pixels"),
        ({"name": "squeezenet1_1", "image_size": 8}, "squeezenet1_1 cannot take .* 8 pixels"),
    ],
)
def test_arguments_that_cannot_be_used(options, words):
    with pytest.raises(ArgumentError, match=words) as raised:
        build(**options)
    assert "\n" not in str(raised.value)


def test_default_weights_that_do_not_arrive(monkeypatch):
    def unreachable(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(WeightsError, match=r"squeezenet1_1.*no route to host.*'none' or a FILE"):
        build("squeezenet1_1", weights="default")
    with pytest.raises(WeightsError, match="no default weights of small-cnn"):
        build("small-cnn", weights="default")


def test_default_weights_of_torchvision(monkeypatch):
    published = build("squeezenet1_1", classes=1000, seed=9).model.state_dict()
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda *_, **__: dict(published)
    )
    check_default("squeezenet1_1", published, head="classifier.1")


def test_other_weights_of_torchvision_by_their_name(monkeypatch):
    # the addresses are those in torchvision's documentation of ResNet50_Weights
    asked, published = [], build("resnet50", classes=1000, seed=9).model.state_dict()

    def load(address, **_):
        asked.append(address.rpartition("/")[2])
        return dict(published)

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load)
    for weights in ("IMAGENET1K_V1", "IMAGENET1K_V2", "default"):
        backbone = build("resnet50", weights=weights)
        assert backbone.pretrained
        assert torch.equal(backbone.model.conv1.weight, published["conv1.weight"])
    first, second = "resnet50-0676ba61.pth", "resnet50-11ad3fa6.pth"
    assert asked == [first, second, second]


@pytest.mark.parametrize("weights", ["IMAGENET1K_V2", "IMAGENET1K_FEATURES", "imagenet1k_v1"])
def test_a_name_of_no_weights_is_told_those_that_there_are(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        WeightsError, match=rf"no weights {weights} of vgg16, .*give IMAGENET1K_V1, 'default'"
    ):
        build("vgg16", weights=weights)
    with pytest.raises(WeightsError, match=r"of test_vit, and no such file; give 'default', 'no"):
        build("test_vit", weights=weights)
    with pytest.raises(
        WeightsError, match=r"of small-cnn, and no such file; give 'none' or a FILE"
    ):
        build("small-cnn", weights=weights)
    (tmp_path / weights).write_bytes(b"")  # a file of that name is a file
    with pytest.raises(WeightsError, match="is no weights file"):
        build("vgg16", weights=weights)


def test_default_weights_of_timm(monkeypatch):
    published = build("test_vit", classes=1000, seed=9).model.state_dict()
    monkeypatch.setattr(
        "timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(published)
    )
    check_default("test_vit", published, head="head")


def check_default(name, published, *, head):
    backbone = build(name, weights="default")
    assert backbone.pretrained
    assert backbone.weights_digest is None
    state, fresh = backbone.model.state_dict(), build(name).model.state_dict()
    for key in state:
        expected = fresh if key.startswith(f"{head}.") else published
        assert torch.equal(state[key], expected[key]), key
    kept = build(name, weights="default", classes=1000).model.state_dict()
    assert all(torch.equal(kept[key], published[key]) for key in published)


def test_a_model_with_a_second_head_gets_both_replaced():
    model = build("deit_tiny_distilled_patch16_224").model
    assert isinstance(model, nn.Module)
    assert [len(model.head.weight), len(model.head_dist.weight)] == [3, 3]


def test_the_last_layer_is_drawn_like_a_layer_replaced_by_hand():
    # nn.Linear draws from ±1/√inputs (a bound of its default initialisation)
    model = build_backbone("tf_efficientnet_lite0", classes=7, weights="none", seed=0).model
    head = model.get_classifier()
    bound = 1 / head.in_features**0.5
    assert bound / 2 < head.weight.abs().max() <= bound
    assert head.bias.abs().max() <= bound


sound = pytest.mark.skipif(torch.__version__ < "2.14", reason="torch ends the process")


@pytest.mark.parametrize("version", ["2.9.1", "2.13.0+cpu", pytest.param("2.14.0", marks=sound)])
def test_group_norms_behind_frozen_layers_do_not_end_the_process(version, monkeypatch):
    """The backward pass of torch 2.9 to 2.13 does, for what lies with the channels last."""
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    model = build_backbone("small-cnn", classes=3, weights="none", seed=0).model
    model.features[0].requires_grad_(False)
    norm = next(module for module in model.modules() if isinstance(module, nn.GroupNorm))
    seen = []
    norm.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    images = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    gradients = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        loss = model(images.to(memory_format=memory_format)).square().sum()
        trained = [p for p in model.parameters() if p.requires_grad]
        gradients.append(torch.autograd.grad(loss, trained))
    assert seen[1].is_contiguous() == (version != "2.14.0")
    torch.testing.assert_close(*gradients)
