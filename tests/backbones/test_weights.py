import hashlib
from collections import OrderedDict
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torchvision.models import VisionTransformer

from gradsurgery.backbones import build_backbone
from gradsurgery.backbones.networks import adapt_torchvision
from gradsurgery.backbones.weights import load_state, read_state
from gradsurgery.errors import WeightsError

TINY_VIT = {"num_layers": 1, "num_heads": 1, "hidden_dim": 8, "mlp_dim": 8, "num_classes": 3}


def build(name, weights="none", *, classes=3, seed=0, image_size=None):
    return build_backbone(
        name, classes=classes, weights=str(weights), seed=seed, image_size=image_size
    )


@pytest.fixture(scope="module")
def alexnet():
    """Random weights of torchvision's AlexNet under its published names, 1,000 classes."""
    from torchvision.models import alexnet

    with torch.random.fork_rng(devices=[]):
        return alexnet(weights=None).state_dict()


@pytest.fixture(scope="module")
def vit():
    return build("test_vit", classes=10, seed=3).model.state_dict()


def test_alexnet_from_a_file(alexnet, tmp_path):
    file = tmp_path / "alexnet.pth"
    torch.save(alexnet, file)
    backbone = build("alexnet", file, classes=7, seed=4)
    assert backbone.pretrained
    assert backbone.weights_digest == hashlib.sha256(file.read_bytes()).hexdigest()
    state = backbone.model.state_dict()
    assert list(state) == list(alexnet)
    body = [key for key in alexnet if not key.startswith("classifier.6.")]
    assert all(torch.equal(state[key], alexnet[key]) for key in body)
    fresh = build("alexnet", classes=7, seed=4).model.classifier[6]
    assert torch.equal(state["classifier.6.weight"], fresh.weight)
    assert torch.equal(state["classifier.6.bias"], fresh.bias)


WRAPPINGS = {
    "bare": dict,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "args": {"lr": 0.1}},
    "module.": lambda state: OrderedDict((f"module.{key}", v) for key, v in state.items()),
    "compiled": lambda state: {"model": {f"module._orig_mod.{k}": v for k, v in state.items()}},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrapped_state_dicts(vit, tmp_path, wrapping):
    file = tmp_path / "weights.pt"
    torch.save(WRAPPINGS[wrapping](vit), file)
    assert_equal_states(build("test_vit", file, classes=10).model.state_dict(), vit)


def test_safetensors(vit, tmp_path):
    save_file(vit, tmp_path / "w.safetensors")
    loaded = build("test_vit", tmp_path / "w.safetensors", classes=10).model.state_dict()
    assert_equal_states(loaded, vit)


def test_position_embeddings_of_another_size_are_resampled(vit, tmp_path):
    save_file(vit, tmp_path / "w.safetensors")
    model = build("test_vit", tmp_path / "w.safetensors", image_size=64).model
    assert model.pos_embed.shape[1] == (64 // 16) ** 2 + 1
    assert torch.equal(model.blocks[0].mlp.fc1.weight, vit["blocks.0.mlp.fc1.weight"])


def test_torchvision_position_embeddings_are_resampled():
    small, large = (
        VisionTransformer(image_size=size, patch_size=8, **TINY_VIT) for size in (32, 48)
    )
    state = small.state_dict()
    # Constant embeddings stay constant under any interpolation.
    state["encoder.pos_embedding"] = torch.full((1, 17, 8), 0.25)
    load_state(large, state, ("heads.head",), partial(adapt_torchvision, large), name="", origin="")
    expected = torch.full((1, (48 // 8) ** 2 + 1, 8), 0.25)
    torch.testing.assert_close(large.encoder.pos_embedding.data, expected)


def test_auxiliary_heads_in_a_file_are_left_out(tmp_path):
    state = build("googlenet").model.state_dict()
    torch.save({**state, "aux1.fc1.weight": torch.zeros(2, 2)}, tmp_path / "w.pth")
    assert_equal_states(build("googlenet", tmp_path / "w.pth").model.state_dict(), state)


def test_published_names_of_densenet(tmp_path):
    state = build("densenet121").model.state_dict()
    old = {
        key.replace("norm1", "norm.1").replace("conv2", "conv.2") if "denselayer" in key else key: v
        for key, v in state.items()
    }
    torch.save(old, tmp_path / "w.pth")
    assert_equal_states(build("densenet121", tmp_path / "w.pth", seed=1).model.state_dict(), state)


def test_version_marks_of_mnasnet_survive_safetensors(tmp_path):
    state = build("mnasnet0_5").model.state_dict()
    save_file(state, tmp_path / "w.safetensors")
    loaded = build("mnasnet0_5", tmp_path / "w.safetensors", seed=1).model.state_dict()
    assert_equal_states(loaded, state)


def drop(state):
    state.pop("blocks.0.norm1.bias")


def extend(state):
    state["extra.weight"] = torch.zeros(2, 3)


def reshape(state):
    state["blocks.1.norm1.weight"] = torch.zeros(5)


def narrow_head(state):
    state["head.weight"] = torch.zeros(10, 32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop, r"1 missing: blocks\.0\.norm1\.bias \[64\]; .*variant of this backbone"),
        (extend, r"1 unexpected: extra\.weight \[2, 3\]"),
        (reshape, r"1 of another shape: blocks\.1\.norm1\.weight \[5\] for \[64\]"),
        (narrow_head, r"head\.weight \[10, 32\] for \[3, 64\]"),
    ],
)
def test_misfits_name_the_keys(vit, tmp_path, change, words):
    state = dict(vit)
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=words) as raised:
        build("test_vit", tmp_path / "w.safetensors")
    assert "\n" not in str(raised.value)
    assert "w.safetensors does not fit test_vit" in str(raised.value)


@pytest.mark.parametrize("name", ["small-cnn", "test_resnet", "alexnet"])
def test_another_architecture(vit, tmp_path, name):
    save_file(vit, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="looks like another architecture"):
        build(name, tmp_path / "w.safetensors")


class Surprise:
    pass


@pytest.mark.parametrize("content", [Surprise(), [1, 2], {}, {"state_dict": {"a": 1}}, {1: 2}])
def test_files_without_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth (holds no|is no weights file)") as it:
        build("small-cnn", tmp_path / "w.pth")
    assert "trust the source" not in str(it.value)  # as torch has it, who would load it then
    assert len(str(it.value)) < 300


def test_a_file_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    of = build("small-cnn", seed=5).model.state_dict()
    torch.save(of, tmp_path / "w.pth")
    found = build("small-cnn", "~/w.pth").model.state_dict()  # as a file of options may say
    assert all(torch.equal(found[name], value) for name, value in of.items())


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(WeightsError, match="cannot read the weights file"):
            build("small-cnn", path)


def test_truncated_files(vit, tmp_path):
    save_file(vit, tmp_path / "w.safetensors")
    torch.save(vit, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        file = tmp_path / name
        file.write_bytes(file.read_bytes()[:-1000])
        with pytest.raises(WeightsError, match="is no weights file"):
            build("test_vit", file)


@given(content=st.binary(max_size=64), suffix=st.sampled_from([".pth", ".pt", ".safetensors"]))
@settings(max_examples=60, deadline=None)
def test_any_bytes_give_one_line(tmp_path_factory, content, suffix):
    file = tmp_path_factory.mktemp("bytes") / f"w{suffix}"
    file.write_bytes(content)
    with pytest.raises(WeightsError) as raised:
        read_state(file)
    assert "\n" not in str(raised.value)


def assert_equal_states(actual, expected):
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


def test_published_weights_with_a_new_head(efficientnet_weights):
    backbone = build("tf_efficientnet_lite0", efficientnet_weights, classes=7, image_size=112)
    fresh = build("tf_efficientnet_lite0", classes=7).model
    published = read_state(efficientnet_weights)
    assert torch.equal(backbone.model.classifier.weight, fresh.classifier.weight)
    assert torch.equal(backbone.model.conv_stem.weight, published["conv_stem.weight"])


def test_published_weights_know_guitars_and_elephants(efficientnet_weights, pacs):
    backbone = build("tf_efficientnet_lite0", efficientnet_weights, classes=1000)
    for label, answers in ((3, {402, 546}), (1, {101, 385, 386})):
        guesses = backbone.model(pacs_photos(pacs, label, backbone)).argmax(1).tolist()
        right = sum(guess in answers for guess in guesses) / len(guesses)
        assert right >= 0.8


def pacs_photos(folder, label, backbone):
    """Thirty photos of one class, normalised as the backbone wants them."""
    import io

    import pyarrow.parquet as parquet
    from PIL import Image
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.Resize((224, 224)),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(backbone.mean, backbone.std),
        ]
    )
    photos = []
    for file in sorted(folder.rglob("*.parquet")):
        table = parquet.read_table(file, filters=[("domain", "=", "photo"), ("label", "=", label)])
        photos += [row["bytes"] for row in table.column("image").to_pylist()]
    images = [Image.open(io.BytesIO(photo)).convert("RGB") for photo in photos[:30]]
    return torch.stack([transform(image) for image in images])
