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
    # a and-mask at its threshold of 1 drops what is zero everywhere
    zeros = not isinstance(rule, gs.ANDMask)
    expected = {"a": 1.0, "b": 0.5 if zeros else 0.25, "c": 0.75 if zeros else 0.0}
    assert result.agreeing_by_parameter == expected
    assert result.agreeing == pytest.approx(sum(expected.values()) / 3)


def test_parameters_without_names_go_by_their_position():
    assert backward_of(gs.AgrSum(), names=False).agreeing_by_parameter == {
        "0": 1.0,
        "1": 0.5,
        "2": 0.75,
    }


@pytest.mark.parametrize("rule", [gs.Sum(), gs.PCGrad(), gs.GradDrop()])
def test_rules_without_a_mask_have_none(rule):
    result = backward_of(rule)
    assert (result.agreeing, result.agreeing_by_parameter) == (None, None)
