"""What the tests of the methods share."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gradsurgery.algorithms import (
    Algorithm,
    build_method,
    hyperparameter_names,
    meta_learning,
)
from gradsurgery.algorithms.objectives import mixup as mixup_module
from tests.algorithms.oracles import Drawn, sgd


@pytest.fixture
def built() -> Callable[..., Algorithm]:
    """A method by name, with draws from the seed 7 and plain inner steps.

    anneal: after how many steps the penalties have their full weight, where there is such a number.
    """

    def build(name: str, anneal: int | None = None, **options: Any) -> Algorithm:
        if anneal is not None:
            numbers = [key for key in hyperparameter_names(name) if key.endswith("anneal")]
            options["settings"] = dict.fromkeys(numbers, anneal) | (options.get("settings") or {})
        given = {"generator": torch.Generator().manual_seed(7), "make_optimizer": sgd, **options}
        return build_method(name, **given)

    return build


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """What Mixup and MLDG drew at their last step."""
    noted = Drawn()
    ring, beta = mixup_module.random_ring, mixup_module.beta

    def noted_ring(length: int, generator: torch.Generator) -> list[tuple[int, int]]:
        noted.ring, noted.shares = ring(length, generator), []
        return noted.ring

    def noted_beta(alpha: float, generator: torch.Generator) -> float:
        noted.shares.append(beta(alpha, generator))
        return noted.shares[-1]

    monkeypatch.setattr(mixup_module, "random_ring", noted_ring)
    monkeypatch.setattr(meta_learning, "random_ring", noted_ring)
    monkeypatch.setattr(mixup_module, "beta", noted_beta)
    return noted
