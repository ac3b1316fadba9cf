"""Networks from a package outside of this one."""

import importlib
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from gradsurgery.backbones import backbone_names, build_backbone
from gradsurgery.errors import ArgumentError, WeightsError

TEXT = """
import torch
from torch import nn

__version__ = "4.2"
calls = []


def tiny(classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes))


class Sized(nn.Module):
    pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (1, 2, 4)}

    def __init__(self, classes, image_size=8, pretrained=False):
        super().__init__()
        calls.append((classes, image_size, pretrained))
        self.head = nn.Linear(3 * image_size**2, classes)
        if pretrained:
            nn.init.constant_(self.head.weight, 7.0)

    def forward(self, images):
        return self.head(images.flatten(1))


def noisy(classes):
    model = tiny(classes)
    model.pretrained_cfg = {"std": (0, 1, 1)}
    return model


class Output:
    logits = 1


class Wrapped(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.head = nn.Linear(3, classes)

    def forward(self, images):
        return Output()


def lazy(classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))


def needs_more(classes, depth):
    return tiny(classes)


def fails(classes):
    raise KeyError("a\\nb")


def wrong(classes):
    return "resnet"


def wide(classes):
    return tiny(classes + 1)


def frozen(classes):
    return tiny(classes).requires_grad_(False)


made = tiny(3)
number = 3
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    name = "nets_of_a_test"
    (tmp_path / f"{name}.py").write_text(TEXT)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield name
    sys.modules.pop(name, None)


def build(name, **options):
    given = {"classes": 3, "weights": "none", "seed": 0, "image_size": 8} | options
    return build_backbone(name, **given)


def test_a_function_of_the_number_of_classes(package):
    backbone = build(f"{package}:tiny")
    assert backbone.model(torch.zeros(2, 3, 8, 8)).shape == (2, 3)
    assert backbone.mean == (0.485, 0.456, 0.406)  # ImageNet's
    assert backbone.std == (0.229, 0.224, 0.225)
    assert not backbone.pretrained
    assert backbone.provenance == {
        "object": f"{package}:tiny",
        "package": package,
        "version": "4.2",
        "sha256": sha256(Path(sys.modules[package].__file__).read_bytes()).hexdigest(),
    }
    assert build("small-cnn").provenance is None


def test_weights_come_from_the_seed_although_the_import_draws_numbers_too(package):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = (
        build(f"{package}:tiny", seed=seed).model[2].weight for seed in (5, 5, 6)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_class_that_takes_the_size_and_has_weights_and_a_normalisation(package):
    backbone = build(f"{package}:Sized", weights="default", image_size=4)
    assert sys.modules[package].calls == [(3, 4, False), (3, 4, True)]
    assert backbone.pretrained
    assert (backbone.model.head.weight == 7).all()
    assert (backbone.mean, backbone.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 4.0))
    assert not (build(f"{package}:Sized").model.head.weight == 7).all()


def test_weights_of_a_file_with_another_last_layer(package, tmp_path):
    model = build(f"{package}:tiny", seed=9).model
    torch.save(model.state_dict(), tmp_path / "w.pth")
    same = build(f"{package}:tiny", weights=str(tmp_path / "w.pth"))
    assert torch.equal(same.model[2].weight, model[2].weight)
    fewer = build(f"{package}:tiny", weights=str(tmp_path / "w.pth"), classes=2)
    assert torch.equal(fewer.model[2].weight, build(f"{package}:tiny", classes=2).model[2].weight)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent", "has no absent"),
        ("number", "expected a function of the number of classes"),
        ("made", "expected a function of the number of classes"),
        ("needs_more", "number of classes alone: missing a required argument: 'depth'"),
        ("fails", r"fails cannot be built .*a\\nb"),
        ("wrong", "gives a str, expected a torch.nn.Module"),
        ("wide", r"gives \[1, 4\] numbers for an image, expected .*\[1, 3\]"),
        ("Wrapped", "gives a Output, expected a tensor of logits; return its logits"),
        ("lazy", "has lazy layers"),
        ("frozen", "has no parameter that trains"),
        ("noisy", "pretrained_cfg .*std above 0"),
    ],
)
def test_what_is_no_network_is_one_line(package, name, words):
    with pytest.raises(ArgumentError, match=words) as caught:
        build(f"{package}:{name}")
    assert str(caught.value).isprintable()


def test_a_function_without_weights_says_so(package):
    with pytest.raises(WeightsError, match=r"no default weights of .*:tiny; give weights 'none'"):
        build(f"{package}:tiny", weights="default")


def test_known_names_are_not_looked_up_elsewhere(monkeypatch):
    from gradsurgery.backbones import networks

    monkeypatch.setattr(networks, "entry_names", lambda kind: ["alexnet", "mine"])
    monkeypatch.setattr(networks, "load_object", lambda *_, **__: pytest.fail("looked it up"))
    assert type(build("alexnet", image_size=None).model).__name__ == "AlexNet"
    assert backbone_names().count("alexnet") == 1
    assert backbone_names()[-1] == "mine"
