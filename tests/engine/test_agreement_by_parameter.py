"""The fraction of agreement within each parameter tensor."""

import pytest
import torch

import gradsurgery as gs


def backward_of(rule, *, names=True):
    """Two domains whose gradients of a, b and c are written down here; nothing reaches d."""
    model = torch.nn.ParameterDict({n: torch.nn.Parameter(torch.zeros(4)) for n in "abcd"})
    first = {"a": [1.0, 1.0, 1.0, 1.0], "b": [1.0, -1.0, 0.0, 2.0], "c": [1.0, 0.0, 0.0, 0.0]}
    second = {"a": [2.0, 3.0, 1.0, 9.0], "b": [-1.0, -1.0, 0.0, -2.0]}
    losses = (
        sum((torch.tensor(values) * model[name]).sum() for name, values in domain.items())
        for domain in (first, second)
    )
    return gs.backward(losses, model.named_parameters() if names else model.parameters(), rule)


@pytest.mark.parametrize("rule", [gs.AgrSum(), gs.AgrRand(), gs.ANDMask()])
def test_each_parameter_has_its_fraction(rule):
    result = backward_of(rule)
    # of those that are not zero in both domains: 4 of 4, 1 of 3, 0 of 1
    assert result.agreeing_by_parameter == {"a": 1.0, "b": 1 / 3, "c": 0.0}
    assert result.moving_by_parameter == {"a": 4, "b": 3, "c": 1}
    assert result.agreeing == 5 / 8
    assert result.zero == pytest.approx(4 / 12)
    # equation 2 counts them as agreeing: 4, 2 and 3 of 4
    assert result.agreeing * (1 - result.zero) + result.zero == pytest.approx(9 / 12)


def test_parameters_without_names_go_by_their_position():
    assert backward_of(gs.AgrSum(), names=False).agreeing_by_parameter == {
        "0": 1.0,
        "1": 1 / 3,
        "2": 0.0,
    }


@pytest.mark.parametrize("rule", [gs.Sum(), gs.PCGrad(), gs.GradDrop()])
def test_rules_without_a_mask_have_none(rule):
    result = backward_of(rule)
    assert (result.agreeing, result.zero) == (None, None)
    assert (result.agreeing_by_parameter, result.moving_by_parameter) == (None, None)


def test_where_nothing_moves_there_is_no_fraction():
    weight = torch.ones(3, requires_grad=True)
    result = gs.backward([(0 * weight).sum(), (0 * weight).sum()], [weight], gs.AgrSum())
    assert (result.agreeing, result.zero, result.agreeing_by_parameter) == (None, 1.0, {})
