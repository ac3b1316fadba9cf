import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import gradsurgery
from gradsurgery.backbones import build_backbone
from gradsurgery.data import ImageSet
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.errors import ArgumentError
from gradsurgery.training import train
from gradsurgery.training.learner import Learner, build_learner

CPU = torch.device("cpu")
PACKAGE = Path(str(gradsurgery.__file__)).parent
PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"


def test_a_step_enters_no_file_that_the_page_on_the_house_does_not_name(
    tmp_path: Path,
    images: ImageSet,
    configured: Callable[..., RunConfiguration],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered: set[Path] = set()
    take = Learner.take

    def note(frame: FrameType, event: str, argument: Any) -> None:
        entered.add(Path(frame.f_code.co_filename))

    def traced(learner: Learner, *arguments: Any) -> Any:
        sys.setprofile(note)
        try:
            return take(learner, *arguments)
        finally:
            sys.setprofile(None)

    monkeypatch.setattr(Learner, "take", traced)
    train(configured(method="agr-sum", iterations=2), tmp_path / "run", opened=images)
    files = {str(file.relative_to(PACKAGE)) for file in entered if file.is_relative_to(PACKAGE)}
    trip = PAGE.read_text(encoding="utf-8").split("## A gradient's trip")[1].split("\n## ")[0]
    named = set(re.findall(r"[`(]([\w/]+\.py)", trip)) | {"errors.py"}
    assert {"engine/backward.py", "rules/agreement.py"} < files
    assert files - {"backbones/networks.py"} <= named


def test_a_model_has_its_own_forward_again_after_a_compiled_step(
    images: ImageSet, configured: Callable[..., RunConfiguration]
) -> None:
    backbone = build_backbone("small-cnn", classes=10, weights="none", seed=0, image_size=20)
    learner = build_learner(configured(method="agr-sum"), backbone, torch.device("cpu"))
    model: Any = learner.backbone.model
    own: Callable[..., Any] = model.forward  # as a wrapped one, of the model and not of its class
    model.forward = own
    learner.compiled_forward = functools.partial(own)
    with learner.compiled():
        assert model.forward is learner.compiled_forward
    assert model.forward is own
    del model.forward
    with learner.compiled():
        assert model.forward is learner.compiled_forward
    assert "forward" not in vars(model)


def test_gradnorm_goes_back_twice_through_a_compiled_network(
    images: ImageSet, configured: Callable[..., RunConfiguration]
) -> None:
    def learner(**options: Any) -> Learner:
        backbone = build_backbone("small-mlp", classes=10, weights="none", seed=0, image_size=20)
        return build_learner(configured(method="gradnorm", **options), backbone, CPU)

    random = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(4, 3, 20, 20, generator=random), torch.arange(4) + domain)
        for domain in range(3)
    ]
    plain, compiled, given_up = learner(), learner(), learner()
    expected = plain.take(batches, 1)
    forward = compiled.backbone.model.forward
    compiled.compiled_forward = torch.compile(forward, backend="aot_eager")
    with compiled.compiled():
        compiled.backbone.model(batches[0][0]).sum().backward()  # compiles the backward pass
    torch.testing.assert_close(compiled.take(batches, 1).losses, expected.losses)
    for there, here in zip(
        compiled.backbone.model.parameters(), plain.backbone.model.parameters(), strict=True
    ):
        torch.testing.assert_close(there, here)
    # in a training loop of one's own
    torch.compiler.reset()
    model = torch.compile(given_up.backbone.model, backend="aot_eager")
    model(batches[0][0]).sum().backward()
    with pytest.raises(ArgumentError, match=r"gradnorm goes back .*donated_buffer = False"):
        given_up.algorithm.step(model, batches, given_up.optimizer, step=1)
