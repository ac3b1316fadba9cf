from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from gradsurgery.backbones import Backbone, build_backbone
from gradsurgery.data import DomainBatches, ImageSet, SingleDomainBatches, draw_split
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.errors import NonFiniteError
from gradsurgery.training import images_used, train
from gradsurgery.training import run as run_module

Configure = Callable[..., RunConfiguration]
SOURCES = ("0", "15", "30", "45", "60")


def drawn(images: ImageSet, seed: int = 0) -> SingleDomainBatches:
    indices = draw_split(images, seed=0).train
    batches = DomainBatches(images, indices, domains=SOURCES, batch_size=8, seed=seed)
    return SingleDomainBatches(batches)


@pytest.mark.parametrize("method", ["deep-all", "agr-sum"])
def test_a_run_trains_on_one_domain_at_a_time_as_its_record_says(
    method: str,
    tmp_path: Path,
    images: ImageSet,
    configured: Configure,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[str, ...]] = []

    class Noted(SingleDomainBatches):
        def indices_at(self, step: int) -> np.ndarray:
            seen.append(self.domains_at(step))
            return super().indices_at(step)

    monkeypatch.setattr(images_used, "SingleDomainBatches", Noted)
    record = train(configured(batches="single", method=method), tmp_path, opened=images)
    assert record.configuration.batches == "single"
    assert seen == [drawn(images).domains_at(step) for step in range(12)]
    assert all(len(names) == 5 and len(set(names)) == 1 for names in seen)
    assert len(set(seen)) > 1


@pytest.mark.parametrize("method", ["deep-all", "agr-sum"])
def test_a_gradient_that_is_not_finite_names_the_domain_of_the_step(
    method: str,
    tmp_path: Path,
    images: ImageSet,
    configured: Configure,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The first step whose domain is not the one at that place among the sources.
    step = next(s for s in range(1, 12) if drawn(images).domains_at(s)[0] != SOURCES[1])
    passes, of_step = 0, 5 * step + 2 if method == "agr-sum" else step + 1

    def spoil(gradient: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        return gradient * float("nan") if passes == of_step else gradient

    def spoiled(*args: Any, **kwargs: Any) -> Backbone:
        backbone = build_backbone(*args, **kwargs)
        backbone.model.get_parameter("classifier.bias").register_hook(spoil)
        return backbone

    monkeypatch.setattr(run_module, "build_backbone", spoiled)
    (name,) = set(drawn(images).domains_at(step))
    with pytest.raises(NonFiniteError) as caught:
        train(configured(batches="single", method=method), tmp_path, opened=images)
    expected = f"gradient of classifier.bias of domain {name!r} is not finite at step {step + 1};"
    assert expected in str(caught.value)
