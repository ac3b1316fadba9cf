import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradsurgery as gs
from gradsurgery import domain_conflict
from gradsurgery.backbones import SmallCNN
from gradsurgery.errors import ArgumentError, NonFiniteError
from gradsurgery.gradients.conflict import conflict_of, group_names, sum_of
from gradsurgery.gradients.gradient_gram import grouped

small = st.integers(-3, 3).map(float)  # sums of these are exact
matrices = st.tuples(st.integers(2, 4), st.integers(1, 8)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=small)
)


@given(matrices)
def test_counts_are_those_of_the_definitions(values: np.ndarray) -> None:
    found = conflict_of(torch.from_numpy(values))
    columns = values.T.tolist()
    count = len(values)

    def sign(value: float) -> int:
        return (value > 0) - (value < 0)

    moving = [c for c in columns if any(c)]
    agreeing = [c for c in moving if len({sign(v) for v in c}) == 1]
    assert (found.components, found.moving) == (len(columns), len(moving))
    assert found.agreeing == len(agreeing)
    for d in range(count):
        rest = [sum(c) - c[d] for c in columns]
        against = sum(sign(c[d]) != sign(r) for c, r in zip(columns, rest, strict=True))
        assert found.against_rest[d] == against
        for e in range(count):
            assert found.differing[d, e] == sum(sign(c[d]) != sign(c[e]) for c in columns)
    update = gs.AgrSum()(torch.from_numpy(values))
    assert found.kept == pytest.approx(float(update.square().sum()))
    assert found.gram.numpy() == pytest.approx(values @ values.T)
    total = values.sum(0)
    if np.abs(total).max() > 0:
        length = float(update.norm()) / np.linalg.norm(total)
        assert found.kept_length == pytest.approx(min(1.0, length))
    else:
        assert found.kept_length is None
    for d in range(count):
        rest = total - values[d]
        scale = np.linalg.norm(values[d]) * np.linalg.norm(rest)
        expected = values[d] @ rest / scale if scale else math.nan
        assert float(found.cosines_with_rest[d]) == pytest.approx(expected, abs=1e-9, nan_ok=True)


@given(matrices, st.integers(0, 8))
def test_layers_add_up(values: np.ndarray, cut: int) -> None:
    whole = torch.from_numpy(values)
    parts = conflict_of(whole[:, :cut]) + conflict_of(whole[:, cut:])
    found = conflict_of(whole)
    assert (parts.components, parts.moving, parts.agreeing) == (
        found.components,
        found.moving,
        found.agreeing,
    )
    assert torch.equal(parts.against_rest, found.against_rest)
    assert torch.equal(parts.differing, found.differing)
    torch.testing.assert_close(parts.gram, found.gram)
    assert parts.kept == pytest.approx(found.kept)


def test_more_components_than_fit_a_piece() -> None:
    row = torch.ones(2, 70_000)
    row[1, 65_530:65_540] = -1  # on both sides of a piece's end
    found = conflict_of(row)
    assert (found.moving, found.agreeing) == (70_000, 69_990)
    assert found.kept == 4 * 69_990


def test_of_many_domains_every_pair_is_counted_in_any_precision() -> None:
    """Thirty domains, more components than float16 counts or a piece holds; by the definitions."""
    values = np.random.default_rng(0).integers(-2, 3, (30, 70_001)).astype(np.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = conflict_of(torch.from_numpy(values))
    signs = np.sign(values)
    for d in (0, 1, 17, 29):
        assert found.differing[d].tolist() == (signs != signs[d]).sum(1).tolist()
        rest = np.delete(values, d, axis=0).sum(0)
        assert found.against_rest[d] == (np.sign(rest) != signs[d]).sum()


def test_where_nothing_moves_there_is_no_fraction() -> None:
    found = conflict_of(torch.zeros(2, 3))
    assert (found.agreement, found.kept_length) == (None, None)
    assert found.cosines.isnan().all()
    assert found.cosines_with_rest.isnan().all()


def tanh_network(classes: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, classes)
    )


def test_the_same_images_with_opposite_labels_conflict_in_full() -> None:
    """One image: ∂/∂z of the cross-entropy is p − e_y, for two classes ±(1 − p_y)(1, −1)."""
    model, loss = tanh_network(), nn.CrossEntropyLoss()
    x = torch.randn(1, 6)
    layers = domain_conflict(model, loss, [(x, torch.tensor([0])), (x, torch.tensor([1]))])
    assert list(layers) == ["0", "2", "4"]
    for conflict in [*layers.values(), sum_of(layers)]:
        assert conflict.agreeing == 0
        assert conflict.moving == conflict.components
        assert conflict.against_rest.tolist() == [conflict.components] * 2
        assert float(conflict.cosines[0, 1]) == pytest.approx(-1, abs=1e-6)
        assert conflict.kept == 0


def test_many_images_with_opposite_labels_conflict_in_full_where_the_network_is_undecided() -> None:
    """Where p = 1/2 for every image, the gradients of the two domains are g and −g exactly."""
    model, loss = tanh_network(), nn.CrossEntropyLoss()
    with torch.no_grad():
        model[4].weight[1] = model[4].weight[0]
        model[4].bias[1] = model[4].bias[0]
    x, y = torch.randn(16, 6), torch.arange(16) % 2
    head = domain_conflict(model, loss, [(x, y), (x, 1 - y)])["4"]
    assert head.agreeing == 0
    assert float(head.cosines[0, 1]) == pytest.approx(-1, abs=1e-6)


def test_identical_domains_do_not_conflict() -> None:
    x, y = torch.randn(16, 6), torch.arange(16) % 2
    whole = sum_of(domain_conflict(tanh_network(), nn.CrossEntropyLoss(), [(x, y)] * 3))
    assert whole.agreement == 1
    assert whole.against_rest.tolist() == [0, 0, 0]
    torch.testing.assert_close(whole.cosines, torch.ones(3, 3).double())
    assert whole.kept_length == pytest.approx(1)


def test_it_sees_what_the_rule_sees() -> None:
    """Where no component is zero, the fraction is that of `gs.backward` with Agr-Sum."""
    model, loss = tanh_network(), nn.CrossEntropyLoss()
    batches = [(torch.randn(4, 6), torch.randint(2, (4,))) for _ in range(3)]
    layers = domain_conflict(model, loss, batches)
    assert all(p.grad is None for p in model.parameters())
    losses = (loss(model(x), y) for x, y in batches)
    result = gs.backward(losses, model.named_parameters(), gs.AgrSum())
    assert sum_of(layers).agreement == pytest.approx(result.agreeing)
    update = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert sum_of(layers).kept == pytest.approx(float(update.square().sum()))


class Returning(nn.Module):
    """A network and what becomes of its output."""

    def __init__(self, network: nn.Module, function) -> None:
        super().__init__()
        self.network, self.function = network, function

    def forward(self, x: torch.Tensor):
        return self.function(self.network(x))


def test_a_checkpoint_that_keeps_no_graph_is_refused() -> None:
    model = tanh_network()
    model.forward = lambda x: model[2:](
        checkpoint(model[:2], x.clone().requires_grad_(), use_reentrant=True)
    )
    x, y = torch.randn(2, 6), torch.tensor([0, 1])
    with pytest.raises(ArgumentError, match=r"loss of domain 0 .* use_reentrant=False"):
        domain_conflict(model, nn.CrossEntropyLoss(), [(x, y)] * 2)


@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        *((size, torch.float32) for size in (1e-42, 1e-30, 1e-22, 1e20, 1e37)),
        *((size, torch.float64) for size in (1e-300, 1e-200, 1e200, 1e307)),
    ],
)
def test_gradients_of_any_size(size: float, dtype: torch.dtype) -> None:
    # by hand: g* = (4, 0, 3) and Σ g = (4, 0, 3) + (0, 3 − 1, 0); 25 of 29
    rows = torch.tensor([[1.0, 3.0, 1.0], [3.0, -1.0, 2.0]], dtype=torch.float64)
    scaled = (rows * size).to(dtype)
    found = conflict_of(scaled[:, :2]) + conflict_of(torch.zeros(2, 4, dtype=dtype))
    found = found + conflict_of(scaled[:, 2:])
    rough = 1e-3 if size == 1e-42 else 1e-7  # float32 has few digits left there
    assert found.kept_length == pytest.approx((25 / 29) ** 0.5, rel=rough)
    assert float(found.cosines[0, 1]) == pytest.approx(2 / (11 * 14) ** 0.5, rel=rough)
    assert float(found.cosines_with_rest[0]) == pytest.approx(2 / (11 * 14) ** 0.5, rel=rough)
    assert (found.moving, found.agreeing, found.against_rest.tolist()) == (3, 2, [1, 1])
    if dtype == torch.float32:  # beyond it the squares are no numbers
        assert found.kept == pytest.approx(25 * float(scaled[0, 0].double()) ** 2, rel=rough)
        assert float(found.gram[0, 0]) == pytest.approx(11 * size**2, rel=rough)


def test_a_sum_that_cancels_has_no_direction() -> None:
    # the first two differ in rounding alone, so that their sum is nothing to compare with
    rows = torch.tensor([[1.0, 1.0], [-1.0 - 1e-15, -1.0], [1.0, 0.0]], dtype=torch.float64)
    assert conflict_of(rows).cosines_with_rest.isnan().tolist() == [False, False, True]


def test_frozen_and_unreached_parameters() -> None:
    model = nn.ModuleDict({name: nn.Linear(3, 1) for name in ("used", "frozen", "unused")})
    model["frozen"].requires_grad_(requires_grad=False)
    x = torch.ones(1, 3)

    def used(output: torch.Tensor, sign: float) -> torch.Tensor:
        return output.sum() * sign

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner["used"](x) + self.inner["frozen"](x)

    layers = domain_conflict(Outer(), used, [(x, 1.0), (x, 2.0)])
    assert list(layers) == ["inner.used", "inner.unused"]
    assert (layers["inner.used"].moving, layers["inner.unused"].moving) == (4, 0)


def test_errors_name_what_is_wrong() -> None:
    model, loss = tanh_network(), nn.CrossEntropyLoss()
    x, y = torch.randn(2, 6), torch.tensor([0, 1])
    with pytest.raises(ArgumentError, match="between 2 domains or more, found 1"):
        domain_conflict(model, loss, [(x, y)])
    with pytest.raises(ArgumentError, match="between 2 domains or more, found 1"):
        conflict_of(torch.ones(1, 2))
    with pytest.raises(NonFiniteError, match=r"gradient of domain 1 at parameter 0\.weight"):
        domain_conflict(model, loss, [(x, y), (x * torch.inf, y)])
    for bad, message in (
        ([x, y, y], "domain 1 is a pair \\(x, y\\), found list of 3"),
        ({"x": x, "y": y}, "domain 1 is a pair \\(x, y\\), found dict;"),
        (x, "domain 1 is a pair \\(x, y\\), found Tensor;"),
        ((x[:0], y[:0]), "domain 1 holds no sample"),
        ((None, y), "Sequential does not run on domain 1's batch: "),
        ((x[:, :2], y), "Sequential does not run on domain 1's batch: .*mat1"),
        (
            (x, y[:1]),
            "domain 1 cannot be computed from .* output, a tensor of shape \\[2, 2\\], and y",
        ),
        ((x, y + 9), "domain 1 cannot be computed"),
        ((x, None), "domain 1 cannot be computed .* and y, a NoneType: "),
    ):
        with pytest.raises(ArgumentError, match=message) as caught:
            domain_conflict(model, loss, [(x, y), bad])
        assert "\n" not in str(caught.value)
    with pytest.raises(ArgumentError, match="domain 0 is a real number, found torch"):
        domain_conflict(model, lambda z, _: z.sum() * 1j, [(x, y)] * 2)
    with pytest.raises(ArgumentError, match=r"domain 0 is a pair .* found str;"):
        domain_conflict(model, loss, {"art": (x, y), "sketch": (x, y)})
    with pytest.raises(
        ArgumentError, match=r"domain 0 cannot be computed .* output, a tuple, and y"
    ):
        domain_conflict(Returning(model, lambda z: (z, z)), loss, [(x, y)] * 2)
    with pytest.raises(ArgumentError, match="domain 0 does not depend on a parameter"):
        domain_conflict(Returning(model, torch.Tensor.detach), loss, [(x, y)] * 2)
    for parameter in model.parameters():
        parameter.requires_grad_(requires_grad=False)
    with pytest.raises(ArgumentError, match="no parameter requires a gradient"):
        domain_conflict(model, loss, [(x, y), (x, y)])


def test_a_normalisation_is_in_the_group_of_the_layer_before_it() -> None:
    names = group_names(SmallCNN(classes=3))
    assert set(names.values()) == {
        "features.0, features.1",
        "features.4, features.5",
        "features.8, features.9",
        "classifier",
    }
    assert names["features.5"] == "features.4, features.5"


def test_a_normalisation_at_the_start_is_in_the_group_of_the_layer_after_it() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    assert group_names(model) == {"0": "0, 1", "1": "0, 1", "2": "2"}


def test_blocks_of_residual_networks_stay_apart() -> None:
    from torchvision.models import resnet18

    groups = list(dict.fromkeys(group_names(resnet18()).values()))
    blocks = [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
    assert groups == ["conv1, bn1", *blocks, "fc"]


def test_a_group_is_the_sum_of_its_layers() -> None:
    layers = {"a.0": conflict_of(torch.ones(2, 3)), "a.0.b": conflict_of(-torch.ones(2, 2))}
    (found,) = grouped(layers, lambda layer: layer[:1]).values()
    assert (found.components, found.agreeing) == (5, 5)


def test_gradients_are_switched_on() -> None:
    model = torch.nn.Linear(2, 2)
    batches = [(torch.randn(3, 2), torch.tensor([0, 1, d])) for d in range(2)]
    expected = sum_of(domain_conflict(model, torch.nn.CrossEntropyLoss(), batches))
    with torch.no_grad():
        found = sum_of(domain_conflict(model, torch.nn.CrossEntropyLoss(), batches))
    assert torch.equal(found.gram, expected.gram)


def test_the_model_is_afterwards_as_it_was_and_each_domain_meets_it_so() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2)
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.norm(x) * self.calls

    model = Counting()
    x = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = domain_conflict(model, lambda output, _: output.square().mean(), [(x, 0), (x, 0)])
    assert model.calls == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert sum_of(found).gram[0, 0] == sum_of(found).gram[1, 1]


def test_sparse_gradients_and_losses_of_other_shapes() -> None:
    model = nn.Embedding(3, 1, sparse=True)
    x = torch.tensor([0, 1])
    # g = (±1/2, ±1/2, 0) for the two rows that are picked
    found = sum_of(domain_conflict(model, lambda z, y: (z * y).mean()[None], [(x, 1), (x, -1)]))
    assert found.gram.tolist() == [[0.5, -0.5], [-0.5, 0.5]]
    with pytest.raises(
        ArgumentError, match=r"domain 0 is a tensor with one value, found shape \[2, 1\]"
    ):
        domain_conflict(model, lambda z, y: z, [(x, 1), (x, -1)])
    complex_model = nn.Linear(1, 1, dtype=torch.complex64)
    with pytest.raises(ArgumentError, match="complex"):
        domain_conflict(complex_model, lambda z, y: z, [(x, 1), (x, -1)])
