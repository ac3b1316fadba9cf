from collections.abc import Sequence
from itertools import pairwise
from math import inf, nan
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gradsurgery.training.averaging import Swad, Valley, find_valley

DEFAULTS: dict[str, Any] = {"optimum_patience": 3, "overfit_patience": 6, "tolerance_rate": 1.3}
# Whole numbers, so that ties are frequent and sums exact.
LOSSES = st.lists(st.integers(1, 9).map(float), min_size=1, max_size=25)
VALUES = st.fixed_dictionaries(
    {
        "optimum_patience": st.integers(1, 5),
        "overfit_patience": st.integers(1, 7),
        "tolerance_rate": st.sampled_from([1.0, 1.25, 1.5]),
    }
)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([], Valley(None, -1, False)),
        ([2.0, 2.0], Valley(None, -1, False)),  # fewer than three
        ([9.0, 8.0, 7.0, 6.0, 5.0, 4.0], Valley(None, -1, False)),  # never converges
        ([2.0] * 9, Valley(0, 8, False)),  # flat
        # The limit is 1.3 · (1.0 + 1.2 + 1.4) / 3 = 1.56: five losses above it are too few, ...
        ([5.0, 1.0, 1.2, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0], Valley(1, 4, False)),
        # ... six end it before the first of them, and what follows changes nothing.
        ([5.0, 1.0, 1.2, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.1], Valley(1, 4, True)),
        ([5.0, 1.0, 1.2, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.1, 0.1], Valley(1, 4, True)),
        # One that is not above the limit begins the count anew.
        ([5.0, 1.0, 1.2, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 1.5, 2.1], Valley(1, 9, False)),
        # Overfits at once: the limit is 1.3 · (1 + 10 + 10) / 3 = 9.1.
        ([3.0, 1.0, *[10.0] * 5], Valley(1, 1, False)),
        ([3.0, 1.0, *[10.0] * 6], Valley(1, 1, True)),
        # The first low is what counts, also where a lower one comes later.
        ([2.0, 2.5, 2.0, 1.0, 0.5, 0.4], Valley(0, 5, False)),
        # Not finite: no convergence beside it, and above any limit.
        ([1.0, nan, 1.0, 1.0, 1.0], Valley(2, 4, False)),
        ([1.0, 1.0, 1.0, nan, inf, nan, nan, nan], Valley(0, 2, False)),
        ([1.0, 1.0, 1.0, nan, inf, nan, nan, nan, nan], Valley(0, 2, True)),
    ],
)
def test_valleys_by_hand(losses: list[float], expected: Valley) -> None:
    assert find_valley(losses, **DEFAULTS) == expected


def algorithm_1(
    losses: Sequence[float],
    *,
    optimum_patience: int,
    overfit_patience: int,
    tolerance_rate: float,
) -> tuple[int | None, int]:
    """The paper's loop, line by line; None where the loss never converges."""
    start, end, limit = None, len(losses) - 1, None
    for i in range(len(losses)):
        if limit is None:
            first = i - optimum_patience + 1
            recent = [losses[i - j] for j in range(optimum_patience) if i >= j]
            if first >= 0 and losses[first] == min(recent):
                start, limit = first, tolerance_rate * sum(recent) / optimum_patience
        elif limit < min(losses[i - j] for j in range(overfit_patience) if i >= j):
            end = i - overfit_patience
            break
    return start, end


@given(LOSSES, VALUES)
def test_it_is_algorithm_1(losses: list[float], values: dict[str, Any]) -> None:
    start, settled, ended = find_valley(losses, **values)
    expected_start, expected_end = algorithm_1(losses, **values)
    assert start == expected_start
    assert (settled if ended else len(losses) - 1) == expected_end
    assert ended == (expected_end < len(losses) - 1)


@given(LOSSES, VALUES)
def test_what_is_settled_stays_so(losses: list[float], values: dict[str, Any]) -> None:
    valleys = [find_valley(losses[: n + 1], **values) for n in range(len(losses))]
    for earlier, later in pairwise(valleys):
        assert earlier.start in (None, later.start)
        assert earlier.settled <= later.settled
        assert later == earlier or not earlier.ended


def small_model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def wander(model: nn.Module, step: int) -> dict[str, torch.Tensor]:
    """Other weights and statistics at every step; a copy of them."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=generator))
            else:
                value.fill_(step)
    return {name: value.clone() for name, value in model.state_dict().items()}


@given(LOSSES, VALUES, st.integers(1, 3), st.integers(0, 60))
def test_the_average_is_that_of_all_weights_of_the_valley_stored(
    losses: list[float], values: dict[str, Any], every: int, stopped: int
) -> None:
    model = small_model()
    swad, stored = Swad(model, **values), []
    for step in range(1, every * len(losses) + 1):
        stored.append(wander(model, step))
        swad.update(step)
        if step % every == 0:
            swad.validated(step, losses[step // every - 1])
        assert len(swad.state()["means"]) <= max(values["optimum_patience"] + 1, 3)
        if step == stopped:  # an interruption
            state, swad = swad.state(), Swad(model, **values)
            swad.restore(state)
    start, end = algorithm_1(losses, **values)
    found = swad.result()
    assert found is not None
    assert found.first == every * (start or 0) + 1
    assert found.last == every * (end + 1)
    of_valley = stored[found.first - 1 : found.last]
    for name, value in found.weights.items():
        if value.is_floating_point():
            mean = torch.stack([weights[name].double() for weights in of_valley]).mean(dim=0)
            torch.testing.assert_close(value.double(), mean, rtol=1e-5, atol=1e-6)
        else:
            assert value == of_valley[-1][name]


def test_a_restored_average_goes_on_bit_for_bit() -> None:
    losses = [5.0, 1.0, 1.2, 1.4, 1.7, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.1, 2.2]

    def averaged(stopped: int) -> dict[str, torch.Tensor]:
        model = small_model()
        swad = Swad(model, **DEFAULTS)
        for step in range(1, 2 * len(losses) + 1):
            wander(model, step)
            swad.update(step)
            if step % 2 == 0:
                swad.validated(step, losses[step // 2 - 1])
            if step == stopped:
                state, swad = swad.state(), Swad(model, **DEFAULTS)
                swad.restore(state)
        result = swad.result()
        assert result is not None
        return result.weights

    whole = averaged(0)
    for stopped in range(2, 2 * len(losses), 2):
        parts = averaged(stopped)
        assert all(torch.equal(parts[name], whole[name]) for name in whole)
