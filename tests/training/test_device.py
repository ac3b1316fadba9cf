"""What a run computes with is what its options say, and afterwards what it was."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery.backbones import Backbone
from gradsurgery.data import ImageSet
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.record import Record
from gradsurgery.errors import ArgumentError
from gradsurgery.rules.gramian import full_precision
from gradsurgery.training import train
from gradsurgery.training.device import float32_products, stores_channels_last

Configure = Callable[..., RunConfiguration]
Outcome = Callable[[Record, Path], tuple[dict[str, Any], bytes]]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def products() -> list[str]:
    backends: Any = torch.backends
    places = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    return [place.fp32_precision for place in places]


@contextmanager
def restored() -> Iterator[None]:
    with float32_products(CPU, "float32"):  # which puts back whatever a test sets
        yield


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        (GPU, "float32", ["ieee", "tf32", "tf32"]),
        (GPU, "ieee", ["ieee"] * 3),
        (GPU, "tf32", ["tf32"] * 3),
        (GPU, "bfloat16", ["ieee", "tf32", "tf32"]),
        (CPU, "float32", ["ieee"] * 3),
        (CPU, "tf32", ["ieee"] * 3),
    ],
)
def test_float32_is_multiplied_as_the_precision_says(
    device: torch.device, precision: Any, expected: list[str]
) -> None:
    before = products(), torch.get_float32_matmul_precision()
    with float32_products(device, precision):
        assert products() == expected
        assert torch.backends.cudnn.allow_tf32 == (expected[1] == "tf32")
        assert torch.backends.cuda.matmul.allow_tf32 == (expected[0] == "tf32")
        with full_precision():  # as Gramian rules multiply
            assert products()[0] != "tf32"
        assert products() == expected
    assert (products(), torch.get_float32_matmul_precision()) == before
    with pytest.raises(KeyboardInterrupt), float32_products(device, precision):
        raise KeyboardInterrupt
    assert (products(), torch.get_float32_matmul_precision()) == before


@pytest.mark.filterwarnings("ignore:the images that:UserWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"augment": "domainbed", "average": "ema", "clip_norm": 1.0, "class_weights": "balanced"},
        {"method": "agr-ema", "batches": "single", "augment": "flip"},
        {"method": "fish", "average": "swad", "balance": "classes"},
    ],
)
def test_a_run_is_the_same_whatever_torch_has_for_defaults(
    options: dict[str, Any], tmp_path: Path, configured: Configure, outcome: Outcome
) -> None:
    """As `torch.set_default_dtype(torch.float64)` and `torch.set_default_device("cuda")` set."""
    c, cache = configured(**options), tmp_path / "cache"

    def run(place: str) -> tuple[Any, Tensor]:
        record = gs.train(c, tmp_path / place, cache=cache)
        pictures = [np.full((20, 30, 3), 200, np.uint8)]
        answers = gs.load_model(tmp_path / place, device="cpu").predict(pictures)
        return outcome(record, tmp_path / place), torch.from_numpy(answers.probabilities)

    expected, said = run("plain")
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):  # where no number can be read
            found, told = run("others")
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == expected
    assert torch.equal(told, said)


def test_what_a_user_has_set_is_there_again() -> None:
    backends: Any = torch.backends
    with restored():
        torch.set_float32_matmul_precision("medium")
        backends.cudnn.conv.fp32_precision = "ieee"
        before = products()
        with float32_products(GPU, "tf32"):
            assert products() == ["tf32"] * 3
        assert products() == before
        assert torch.get_float32_matmul_precision() == "medium"
        backends.cuda.matmul.fp32_precision = "ieee"  # against the other way of saying it
        with float32_products(GPU, "tf32"):
            assert products() == ["tf32"] * 3
        assert products()[0] == "ieee"


def test_a_run_computes_in_its_precision(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    seen: list[list[str]] = []
    before = products()
    train(
        configured(iterations=1, precision="float32"),
        tmp_path,
        opened=images,
        observe=lambda step, backbone: seen.append(products()),
    )
    assert seen == [["ieee"] * 3] * 2
    assert products() == before


@pytest.mark.parametrize(
    ("device", "options", "expected"),
    [
        (GPU, {"precision": "tf32"}, True),
        (GPU, {"precision": "bfloat16"}, True),
        (GPU, {"precision": "float32"}, False),
        (GPU, {"precision": "float32", "channels_last": "on"}, True),
        (GPU, {"precision": "tf32", "channels_last": "off"}, False),
        (CPU, {"precision": "bfloat16"}, False),
        (CPU, {"channels_last": "on"}, True),
    ],
)
def test_channels_lie_last_where_it_pays(
    device: torch.device, options: dict[str, str], expected: bool, configured: Configure
) -> None:
    configuration = configured(**options)
    assert stores_channels_last(configuration, device, nn.Conv2d(3, 4, 3)) is expected
    if "channels_last" not in options:
        assert not stores_channels_last(configuration, device, nn.Linear(3, 4))


@pytest.mark.parametrize("average", ["ema", "swad"])
def test_weights_with_the_channels_last_train_and_are_saved_as_ever(
    average: str, tmp_path: Path, images: ImageSet, configured: Configure, outcome: Outcome
) -> None:
    layouts = set()

    def observe(step: int, backbone: Backbone) -> None:
        weight = next(p for p in backbone.model.parameters() if p.dim() == 4 and p.shape[1] > 1)
        layouts.add(weight.is_contiguous(memory_format=torch.channels_last))

    found = {}
    for layout in ("off", "on"):
        options = configured(channels_last=layout, average=average, method="pcgrad")
        record = train(options, tmp_path / layout, opened=images, observe=observe)
        assert record.configuration.channels_last == layout
        found[layout] = (
            record.curves.train_loss,
            load_file(tmp_path / layout / "model.safetensors"),
        )
        assert layouts == {layout == "on"}
        layouts.clear()
    assert found["on"][0] == pytest.approx(found["off"][0], rel=1e-4)
    for name, weight in found["off"][1].items():
        torch.testing.assert_close(found["on"][1][name], weight, rtol=1e-2, atol=1e-3)
    again = configured(channels_last="on", average=average, method="pcgrad")
    record = train(again, tmp_path / "again", opened=images)
    first = Record.load(tmp_path / "on"), tmp_path / "on"
    assert outcome(record, tmp_path / "again") == outcome(*first)


def test_a_compiled_network_trains_and_the_plain_one_is_judged(
    tmp_path: Path,
    images: ImageSet,
    configured: Configure,
    outcome: Outcome,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[bool] = []

    def compile_(forward: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        assert options["dynamic"] is False

        def compiled(*inputs: Any) -> Any:
            calls.append(torch.is_grad_enabled())
            return forward(*inputs)

        return compiled

    def observe(step: int, backbone: Backbone) -> None:
        assert "forward" not in vars(backbone.model)

    monkeypatch.setattr(torch, "compile", compile_)
    plain = train(configured(average="ema"), tmp_path / "plain", opened=images)
    assert calls == []
    options = configured(average="ema", compile=True)
    record = train(options, tmp_path / "compiled", opened=images, observe=observe)
    assert calls == [True] * (12 * 5)  # a pass for each of the five source domains
    assert record.configuration.compile
    found, expected = outcome(record, tmp_path / "compiled"), outcome(plain, tmp_path / "plain")
    found[0]["configuration"]["compile"] = False
    assert found == expected


def test_a_network_that_cannot_be_compiled_is_refused(
    tmp_path: Path, images: ImageSet, configured: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.exc import Unsupported

    def broken(*_: Any) -> None:
        raise Unsupported("a generator\nof its own")

    monkeypatch.setattr(torch, "compile", lambda forward, **_: broken)
    with pytest.raises(ArgumentError, match=r"small-cnn cannot be compiled: a generator of its.*"):
        train(configured(compile=True), tmp_path, opened=images)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("fishr", {"fishr.anneal": 3}),
        ("coral", {}),
        ("cdann", {}),
        ("ib-erm", {"ib-erm.anneal": 3}),
    ],
)
def test_what_reads_features_and_a_compiled_network_are_refused(
    method: str, settings: dict[str, float], tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    options = configured(compile=True, method=method, settings=settings)
    with pytest.raises(
        ArgumentError, match=rf"{method} looks at what goes into.*leave --compile out"
    ):
        train(options, tmp_path / "run", opened=images)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the mark is Linux's")
def test_the_peak_of_a_process_is_not_that_of_its_parent() -> None:
    child = (
        "import torch; from gradsurgery.training.device import peak_memory_bytes; "
        "print(peak_memory_bytes(torch.device('cpu')))"
    )
    parent = (
        "import subprocess, sys; held = b'x' * (1 << 30); "
        f"subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    )
    command = [sys.executable, "-c", parent]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert 2**24 < int(done.stdout) < 2**30
