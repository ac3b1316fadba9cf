"""Label smoothing means the same in every objective: other targets in its cross-entropies."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, one_hot

from gradsurgery.algorithms import OBJECTIVES, build_method
from gradsurgery.algorithms.forward import Forward
from gradsurgery.algorithms.objectives import Batch, Objective, penalties
from gradsurgery.algorithms.objectives.base import DomainLosses
from gradsurgery.algorithms.objectives.penalties import head_gradient_variance
from gradsurgery.errors import ArgumentError, NonFiniteError

EPSILON = 0.2


def soft_cross_entropy(logits: Tensor, labels: Tensor, epsilon: float = EPSILON) -> Tensor:
    """−Σ_k q_k log p_k, written out."""
    classes = logits.shape[1]
    targets = (1 - epsilon) * one_hot(labels, classes).double() + epsilon / classes
    return -(targets * log_softmax(logits, 1)).sum(1).mean()


def batches(domains: int = 3) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(6, 3, 2, 2, generator=generator, dtype=torch.float64),
            torch.randint(4, (6,), generator=generator),
        )
        for _ in range(domains)
    ]


def network() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).double()


def losses_of(name: str, epsilon: float, model: nn.Module) -> list[Tensor]:
    objective = OBJECTIVES[name](generator=torch.Generator().manual_seed(5))
    objective.label_smoothing = epsilon
    return list(objective.losses(Forward(model), batches(), 1))


@pytest.mark.parametrize("name", ["erm", "vrex", "group-dro"])
def test_objectives_of_the_risks_take_smoothed_ones(name: str) -> None:
    model = network()
    risks = torch.stack([soft_cross_entropy(model(x), y) for x, y in batches()]).detach()
    expected = {
        "erm": risks,
        "vrex": risks + (risks - risks.mean()) ** 2,
        "group-dro": 3 * (0.01 * risks).softmax(0) * risks,
    }
    found = torch.stack(losses_of(name, EPSILON, model))
    assert torch.allclose(found.detach(), expected[name], rtol=1e-12)


def test_irms_penalty_is_of_the_smoothed_risk() -> None:
    logits, labels = torch.randn(8, 4, dtype=torch.float64), torch.randint(4, (8,))
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    risk = soft_cross_entropy(scale * logits, labels)
    (expected,) = torch.autograd.grad(risk, scale)
    assert torch.allclose(penalties.scale_gradient(logits, labels, EPSILON), expected, rtol=1e-12)


def test_fishrs_variance_is_of_the_smoothed_risks_gradients() -> None:
    features = torch.randn(5, 3, dtype=torch.float64)
    labels = torch.randint(4, (5,))
    head = nn.Linear(3, 4).double()
    gradients = []
    for i in range(5):
        loss = soft_cross_entropy(head(features[i : i + 1]), labels[i : i + 1])
        weight, bias = torch.autograd.grad(loss, list(head.parameters()))
        gradients.append(torch.cat([weight, bias[:, None]], 1).flatten())
    expected = torch.stack(gradients).var(0, correction=0)
    found = head_gradient_variance(features, head(features), labels, EPSILON)
    assert torch.allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_is_smoothed_and_without_it_as_before(name: str) -> None:
    plain, smooth = (torch.stack(losses_of(name, e, network())).detach() for e in (0.0, EPSILON))
    assert not torch.allclose(plain, smooth)


@pytest.mark.parametrize("name", ["deep-all", "mldg", "fish"])
def test_methods_train_on_smoothed_labels(name: str) -> None:
    model = network()
    algorithm = build_method(
        name,
        generator=torch.Generator().manual_seed(0),
        make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0),
        settings={"mldg.beta": 0.0} if name == "mldg" else {},
    )
    algorithm.smooth_labels(EPSILON)
    risks = torch.stack([soft_cross_entropy(model(x), y) for x, y in batches()]).detach()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    result = algorithm.step(model, batches(), optimizer, step=1)
    assert torch.allclose(result.losses, risks, rtol=1e-12)


class Own(Objective):
    """Takes its cross-entropies from torch."""

    name = "own"

    def losses(self, forward: Forward, batches: Sequence[Batch], step: int) -> DomainLosses:
        for z, (_, y) in zip(forward([x for x, _ in batches]), batches, strict=True):
            yield nn.functional.cross_entropy(z, y)


class Inherits(OBJECTIVES["erm"]):  # type: ignore[misc]
    """What it inherits says nothing of its own losses."""

    losses = Own.losses


@pytest.mark.parametrize("name", ["Own", "Inherits"])
def test_an_objective_that_smoothing_does_not_reach_is_refused(name: str) -> None:
    options: Any = {
        "generator": torch.Generator(),
        "make_optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    }
    place = f"{__name__}:{name}+mean"
    algorithm = build_method(place, **options)
    algorithm.smooth_labels(0.0)
    with pytest.raises(ArgumentError, match="takes its cross-entropies by itself"):
        algorithm.smooth_labels(0.1)


def test_an_update_whose_norm_is_beyond_float32_is_no_update_of_zeros() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    huge = [(torch.full((2, 3, 2, 2), 3e30), torch.tensor([0, 1])) for _ in range(2)]
    algorithm = build_method(
        "deep-all",
        generator=torch.Generator(),
        make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    with torch.no_grad():
        model[1].weight.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-30)
    batch = [(images, torch.tensor([0, 0])) for images, _ in huge]
    with pytest.raises(NonFiniteError):
        algorithm.step(model, batch, optimizer, step=1, clip_norm=1.0)
    assert not model[1].weight.any()
