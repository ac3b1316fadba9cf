"""Domains that lack classes have no say on them, and classes have weights."""

import copy

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn.functional import cross_entropy

from gradsurgery.algorithms import build_method, hyperparameter_names
from gradsurgery.training.images_used import balanced_weights

METHODS = ["deep-all", "erm+sum", "pcgrad", "vrex", "group-dro", "irm", "mixup", "coral", "mmd",
           "fishr", "sd", "eqrm", "ib-erm", "ib-irm", "dann", "fish", "mldg"]  # fmt: skip


def built(name):
    return build_method(
        name,
        generator=torch.Generator().manual_seed(0),
        make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01),
        settings={key: 1 for key in hyperparameter_names(name) if key.endswith("anneal")},
    )


def batches(classes=((0, 1), (1, 2))):
    """Images of two domains whose labels are among their `classes`."""
    draw = torch.Generator().manual_seed(3)
    return [
        (torch.randn(6, 4, 1, 1, generator=draw), torch.tensor(own)[torch.arange(6) % len(own)])
        for own in classes
    ]


def step(method, weights=None, lacking=None, model=None, data=None):
    model = model or network(3)
    method.treat_classes(weights, lacking)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, method.step(model, data or batches(), optimizer, step=5)


def network(classes):
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, classes))


LACKING = torch.tensor([[False, False, True], [True, False, False]])


@pytest.mark.parametrize("name", [name for name in METHODS if name != "fishr"])
def test_a_class_that_all_lack_is_as_if_the_network_had_no_output_for_it(name):
    """Class 2 is out of reach of both domains: the others move as in a network of two classes."""
    data = batches(((0, 1), (0, 1)))
    large = network(3)
    small = network(2)
    with torch.no_grad():
        small[1].load_state_dict(large[1].state_dict())
        small[3].weight.copy_(large[3].weight[:2])
        small[3].bias.copy_(large[3].bias[:2])
    before = copy.deepcopy(large[3])
    lacking = torch.tensor([[False, False, True]] * 2)
    _, found = step(built(name), lacking=lacking, model=large, data=data)
    _, expected = step(built(name), model=small, data=data)
    torch.testing.assert_close(found.losses, expected.losses)
    torch.testing.assert_close(large[1].weight, small[1].weight)
    torch.testing.assert_close(large[3].weight[:2], small[3].weight)
    torch.testing.assert_close(large[3].weight[2], before.weight[2], rtol=0, atol=0)
    torch.testing.assert_close(large[3].bias[2], before.bias[2], rtol=0, atol=0)


def test_fishrs_variances_are_zero_where_a_domain_has_no_say():
    """Its penalty is a mean over the last layer's weights, of which the larger network has more."""
    data = batches(((0, 1), (0, 1)))
    large, small = network(3), network(2)
    with torch.no_grad():
        small[1].load_state_dict(large[1].state_dict())
        small[3].weight.copy_(large[3].weight[:2])
        small[3].bias.copy_(large[3].bias[:2])
    lacking = torch.tensor([[False, False, True]] * 2)
    risks = [cross_entropy(small(x), y).detach() for x, y in data]
    _, found = step(built("fishr"), lacking=lacking, model=large, data=data)
    _, expected = step(built("fishr"), model=small, data=data)
    penalty = (expected.losses - torch.stack(risks)) * 2 / 3
    torch.testing.assert_close(found.losses - torch.stack(risks), penalty)


def test_each_domains_loss_is_over_the_classes_it_has():
    data, model = batches(), network(3)
    (x0, y0), (x1, y1) = data
    expected = [cross_entropy(model(x0)[:, :2], y0), cross_entropy(model(x1)[:, 1:], y1 - 1)]
    for name in ("deep-all", "pcgrad"):
        _, result = step(built(name), lacking=LACKING, model=network(3), data=data)
        torch.testing.assert_close(result.losses, torch.stack(expected).detach())


def test_mixed_images_are_judged_over_the_classes_of_both_domains():
    _, masked = step(built("mixup"), lacking=LACKING)
    _, plain = step(built("mixup"))
    torch.testing.assert_close(masked.losses, plain.losses)  # together they have all classes


def test_images_of_a_domain_whose_classes_are_not_known_are_refused():
    with pytest.raises(Exception, match="whose classes are not known"):
        step(built("deep-all"), lacking=LACKING[:1])


@pytest.mark.parametrize(
    "name", ["deep-all", "pcgrad", "group-dro", "vrex", "eqrm", "fish", "mldg"]
)
def test_weights_of_classes_are_those_of_the_cross_entropy(name):
    weights = torch.tensor([0.5, 2.0, 4.0])
    data, model = batches(), network(3)
    (x0, y0), _ = data
    _, result = step(built(name), weights, model=network(3), data=data)
    loss = cross_entropy(model(x0), y0, weight=weights)
    if name in ("deep-all", "pcgrad"):
        torch.testing.assert_close(result.losses[0], loss.detach())
    _, plain = step(built(name), model=network(3), data=data)
    assert not torch.allclose(result.losses, plain.losses)


def test_balanced_weights_are_scikit_learns():
    labels = np.repeat([0, 1, 3], [5, 2, 13])
    weights = balanced_weights(np.bincount(labels, minlength=5))
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    np.testing.assert_allclose(weights[[0, 1, 3]], expected, rtol=1e-6)
    assert weights[[2, 4]].tolist() == [1, 1]


HEADS = ("3.weight", "3.bias")


@pytest.mark.parametrize("name", ["agr-sum", "agr-ema", "erm+and-mask"])
def test_a_domain_has_no_vote_on_the_outputs_of_a_class_that_it_lacks(name):
    """Class 2 is only domain 1's, class 0 only domain 0's: each moves as its domain alone says."""
    model, method = network(3), built(name)
    start = copy.deepcopy(model)
    method.treat_classes(None, LACKING, HEADS)
    result = method.step(model, batches(), torch.optim.SGD(model.parameters(), lr=0.1), step=5)
    assert result.agreeing > 0
    share = 2 if "and-mask" in name else 1
    (x0, y0), (x1, y1) = batches()
    risks = cross_entropy(start(x0)[:, :2], y0), cross_entropy(start(x1)[:, 1:], y1 - 1)
    for row, risk in zip((0, 2), risks, strict=True):
        gradient = torch.autograd.grad(risk, start[3].weight)[0][row] / share
        expected = start[3].weight[row] - 0.1 * gradient
        torch.testing.assert_close(model[3].weight[row], expected, rtol=1e-6, atol=1e-8)
    without = network(3)
    method = built(name)
    method.treat_classes(None, LACKING)
    method.step(without, batches(), torch.optim.SGD(without.parameters(), lr=0.1), step=5)
    assert torch.equal(without[3].weight[[0, 2]], start[3].weight[[0, 2]])  # what it is for


def test_pairs_that_both_lack_a_class_have_no_vote_on_it():
    """mldg's pairs of three domains, of which the last alone has class 2: it is learned."""
    data = batches(((0, 1), (0, 1), (1, 2)))
    lacking = torch.tensor([[False, False, True], [False, False, True], [True, False, False]])
    moved = []
    for heads in (HEADS, ()):
        model, start, method = network(3), network(3), built("mldg+agr-sum")
        method.treat_classes(None, lacking, heads)
        method.step(model, data, torch.optim.SGD(model.parameters(), lr=0.1), step=5)
        moved.append(bool((model[3].weight[2] != start[3].weight[2]).all()))
    assert moved == [True, False]
