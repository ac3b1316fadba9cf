"""`gradient_gram` is right or refuses, for networks that nobody wrote.

    GRADIENT_NETWORKS=2000 GRADIENT_SEED=2000 pytest tests/gradients/test_random_networks.py

makes so many networks of each kind, from that seed on.
"""

import copy
import os
import random

import pytest
import torch
from torch import nn

import gradsurgery as gs
from gradsurgery.errors import ArgumentError, NonFiniteError
from tests.gradients.oracle import relative_error
from tests.gradients.random_networks import FORMS, WIDTH, is_apart, random_network

COUNT = int(os.environ.get("GRADIENT_NETWORKS", "30"))
FIRST = int(os.environ.get("GRADIENT_SEED", "0"))
cross_entropy = nn.CrossEntropyLoss(reduction="none")
LOSSES = {
    "cross-entropy": cross_entropy,
    "mean": nn.CrossEntropyLoss(),
    "squares": lambda z, _: z.square().sum(1),
    "detached scale": lambda z, y: cross_entropy(z, y) * z.detach().square().sum(1),
    "second order": lambda z, y: (
        cross_entropy(z, y) + torch.autograd.grad(z.tanh().sum(), z, create_graph=True)[0].sum(1)
    ),
}
MIXING_LOSSES = {
    "of the largest": lambda z, y: cross_entropy(z, y) * z.detach().max(),
    "of the size": lambda z, y: cross_entropy(z, y) / len(y),
    "of the labels": lambda z, y: cross_entropy(z, y) * (y == 0).sum(),
}


def rows_alone(network, loss, x, y, seed) -> dict[str, torch.Tensor]:
    """The gradients in float64, of a network made anew for each sample, with its own draws."""
    rows: dict[str, list[torch.Tensor]] = {}
    for i, fresh in enumerate(networks_alone(network, x, seed)[0]):
        named = [(name, p) for name, p in fresh.named_parameters() if p.requires_grad]
        value = loss(fresh(x[i : i + 1]), y[i : i + 1]).sum()
        add(rows, named, value)
    return {name: torch.stack(row) for name, row in rows.items()}


def networks_alone(network, x, seed) -> tuple[list[nn.Module], torch.Tensor]:
    """The network anew for each sample, with the sample's draws; and the logits for all samples."""
    drawing = copy.deepcopy(network)
    torch.manual_seed(seed)
    logits = FORMS[network.form][1](drawing(x)).detach()
    alone = [copy.deepcopy(network) for _ in x]
    for i, fresh in enumerate(alone):
        for part, drawn in zip(fresh.parts, drawing.parts, strict=True):
            part.given = own_part(part.name, drawn.drawn, i)
    return alone, logits


def jumps(network, x, seed) -> bool:
    """Whether rounding alone decides: a sample by itself has other logits than among the others.

    For a network that keeps samples apart. Where a step (`round`, `long`) meets its edge, the last
    bit of a product makes the difference, and there is no one right gradient.
    """
    alone, logits = networks_alone(network, x, seed)
    own = [FORMS[network.form][1](fresh(x[i : i + 1])) for i, fresh in enumerate(alone)]
    return not torch.allclose(torch.cat(own), logits, rtol=1e-6, atol=1e-6, equal_nan=True)


def own_part(name, drawn, i) -> torch.Tensor | None:
    if drawn is None or name == "dropout of weights":
        return drawn
    return drawn[:, i : i + 1] if name == "dropout of sequences" else drawn[i : i + 1]


def add(rows, named, value) -> None:
    parameters = [p for _, p in named]
    found = [torch.zeros_like(p) for p in parameters]
    if value.requires_grad:
        found = torch.autograd.grad(
            value, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
    for (name, _), gradient in zip(named, found, strict=True):
        dense = gradient.to_dense() if gradient.is_sparse else gradient
        rows.setdefault(name, []).append(dense.flatten().double())


def contents(network) -> list[object]:
    """All that hangs on the layers, in a form that can be compared."""

    def plain(value):
        if isinstance(value, torch.Tensor):
            return value.detach().clone().tolist(), value.requires_grad
        if isinstance(value, dict):
            return [(key, plain(one)) for key, one in value.items()]
        return value

    return [plain(vars(layer)) for layer in network.modules()]


def check(network, loss, x, y, seed: int) -> str:
    """ "right" or "refused"; raises where neither is so."""
    before = contents(network)
    copied = copy.deepcopy(network)
    torch.manual_seed(seed)
    random_state = torch.get_rng_state()
    gram, message = None, ""
    try:
        gram = gs.gradient_gram(network, loss, x, y)
    except (ArgumentError, NonFiniteError) as error:
        message = str(error)
        must_be_infinite = isinstance(error, NonFiniteError)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert contents(network) == before
    if gram is None:
        assert "\n" not in message
        if not must_be_infinite:
            return "refused"
    alone = rows_alone(copied, loss, x, y, seed)
    if gram is None:
        assert not all(row.isfinite().all() for row in alone.values())
        return "right"
    expected: dict[str, torch.Tensor] = {}
    for name, row in alone.items():
        layer = name.rpartition(".")[0]
        expected[layer] = expected.get(layer, 0) + row @ row.T
    assert gram.layers.keys() == expected.keys()
    for layer, matrix in expected.items():
        assert relative_error(gram.layers[layer], matrix) < 1e-6, layer
    return "right"


def case(seed: int, *, mixing: float, drawing: float):
    choose = random.Random(seed)
    torch.manual_seed(seed)
    network = random_network(choose, mixing=mixing, drawing=drawing).double()
    samples = choose.randint(1, 7)
    x = torch.randn(samples, WIDTH, dtype=torch.float64)
    if choose.random() < 0.3:
        x = x.mul(2).round()  # ties, and zeros
    return network, choose, x, torch.randint(3, (samples,))


def test_a_network_at_the_edge_of_a_step_is_refused():
    """As where `long` cuts at a whole number that a product reaches but for its last bit."""
    table = nn.Embedding(4, 3)

    def forward(x):
        rounded = x.double() - (0 if len(x) > 1 else 2**-51)  # another order of summation
        return table(rounded[:, 0].long())

    table_of = nn.ModuleList([table])
    table_of.forward = forward
    y = torch.tensor([0, 1])
    away, at = torch.tensor([[2.5], [1.5]]), torch.tensor([[2.5], [2.0]])
    gram = gs.gradient_gram(table_of, cross_entropy, away, y)
    assert gram.total[0, 1] == 0  # other rows
    with pytest.raises(ArgumentError, match="see each other"):
        gs.gradient_gram(table_of, cross_entropy, at, y)


@pytest.mark.parametrize(("mixing", "drawing"), [(0, 0), (0.3, 0), (0, 0.5), (0.25, 0.3)])
def test_no_random_network_gets_a_wrong_number(mixing, drawing):
    results = []
    for seed in range(FIRST, FIRST + COUNT):
        network, choose, x, y = case(seed, mixing=mixing, drawing=drawing)
        losses = {**LOSSES, **MIXING_LOSSES} if mixing else LOSSES
        name = choose.choice(sorted(losses))
        logits, parts = FORMS[network.form][1], [part.name for part in network.parts]

        def loss(output, y, name=name, logits=logits, losses=losses):
            return losses[name](logits(output), y)

        try:
            result = check(network, loss, x, y, seed)
        except Exception as error:
            error.add_note(f"seed {seed}, loss {name}, {network.form} of {parts}")
            raise
        found_in_object = name == "mean" and network.form == "object"  # one loss for all of them
        if is_apart(network) and name in LOSSES and not found_in_object and result != "right":
            assert jumps(network, x, seed), (seed, name, network.form, parts)
        results.append(result)
    assert results.count("right") > COUNT // 4
