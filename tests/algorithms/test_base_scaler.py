"""A loss scaler that only ever shrinks is reported."""

import pytest
import torch

from gradsurgery.algorithms import Step
from gradsurgery.engine import BackwardResult
from gradsurgery.errors import NonFiniteError


def test_gradients_that_overflow_at_every_scale_raise():
    weight = torch.ones(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)

    seen = BackwardResult(torch.zeros(1))

    def steps() -> None:
        for _ in range(50):
            optimizer.zero_grad()
            scaler.scale(weight.sum()).backward()
            weight.grad.fill_(torch.nan)
            Step(torch.nn.Identity(), [], optimizer, 1, scaler).update_parameters(seen)

    with pytest.raises(NonFiniteError, match="not finite at any scale"):
        steps()
    assert weight.item() == 1.0
