"""A run shows its model while it trains, and trains as if nobody had looked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gradsurgery.backbones import Backbone
from gradsurgery.data import ImageSet
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.documents.record import Record
from gradsurgery.training import TrainingProgress, train

Configure = Callable[..., RunConfiguration]
Outcome = Callable[[Record, Path], tuple[dict[str, Any], bytes]]


def test_an_observer_changes_nothing(
    tmp_path: Path, images: ImageSet, configured: Configure, outcome: Outcome
) -> None:
    seen: list[int] = []

    def observe(step: int, backbone: Backbone) -> None:
        seen.append(step)
        torch.manual_seed(step)
        torch.randn(5)
        backbone.model.eval()
        loss = backbone.model(torch.ones(2, 3, 12, 12)).sum()
        loss.backward()  # leaves gradients on the parameters

    configuration = configured(method="agr-rand")
    plain = train(configuration, tmp_path / "plain", opened=images)
    watched = train(configuration, tmp_path / "watched", opened=images, observe=observe)
    assert seen == list(range(13))
    assert outcome(watched, tmp_path / "watched") == outcome(plain, tmp_path / "plain")


def test_a_resumed_run_shows_the_step_it_goes_on_from(
    tmp_path: Path, images: ImageSet, configured: Configure
) -> None:
    shown: list[tuple[int, float]] = []

    def observe(step: int, backbone: Backbone) -> None:
        total = sum(float(p.detach().double().abs().sum()) for p in backbone.model.parameters())
        shown.append((step, total))

    def stop(progress: TrainingProgress) -> None:
        if progress.stage == "training" and progress.done == 6:
            raise KeyboardInterrupt

    configuration = configured(validate_every=4)
    with pytest.raises(KeyboardInterrupt):
        train(configuration, tmp_path, stop, opened=images, observe=observe)
    first = dict(shown)
    assert list(first) == list(range(7))
    shown.clear()
    train(configuration, tmp_path, opened=images, observe=observe)
    assert [step for step, _ in shown] == list(range(4, 13))
    assert shown[0] == (4, first[4])
    assert dict(shown)[6] == first[6]
