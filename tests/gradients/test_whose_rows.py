"""`gradient_gram` where the shapes alone do not tell whose rows are whose."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import gradsurgery as gs
from gradsurgery.errors import ArgumentError
from gradsurgery.gradients import one_by_one
from gradsurgery.gradients.conflict import sum_of
from tests.engine.test_graph import MODELS, Recomputing, gradients_one_by_one
from tests.gradients.networks_by_hand import ONE_TWO_THREE, One, diagonal
from tests.gradients.oracle import cross_entropy, relative_error, stored_grams


def sort_and_unsort(s, x):
    order = x[:, 0].argsort()
    return s.l(x[order])[order.argsort()]


def test_rows_sorted_by_the_data():
    # ∂(w x)/∂w = x
    assert diagonal(One(sort_and_unsort), ONE_TWO_THREE) == [1, 9, 4]


def test_rows_routed_by_the_data():
    def routed(s, x):
        large = x[:, 0] > 1.5
        output = torch.zeros_like(x)
        output[large], output[~large] = 2 * s.l(x[large]), s.l(x[~large])
        return output

    assert diagonal(One(routed), ONE_TWO_THREE) == [1, 36, 16]


def test_rows_packed():
    # packed sequences put the first step of all samples before the second; ∂/∂w = Σ_t x_t
    def packed(s, x):
        lengths = (x != 0).sum(1)
        pack = nn.utils.rnn.pack_padded_sequence(
            x[..., None], lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        rows, *others = pack
        result = nn.utils.rnn.PackedSequence(s.l(rows), *others)
        return nn.utils.rnn.pad_packed_sequence(result, batch_first=True)[0].sum(1)

    x = torch.tensor([[1.0, 2.0, 0.0], [3.0, 4.0, 5.0], [6.0, 0.0, 0.0]])
    assert diagonal(One(packed), x) == [9, 144, 36]


def test_a_weight_made_of_as_many_rows_as_there_are_samples():
    """y_i = x_i Σ_k q_k w, whose derivatives are x_i Σ_k q_k by w and x_i w by each q_k."""
    model = One(lambda net, x: functional.linear(x, net.l(net.rows)))
    model.rows = nn.Parameter(torch.tensor([[1.0], [2.0], [3.0]]))
    assert diagonal(model, ONE_TWO_THREE) == [39.0, 351.0, 156.0]


def test_a_branch_for_training_alone(caplog):
    def branch(s, x):
        if not s.training:
            return s.l(x)
        y = s.l(torch.cat([x, 10 * x]))
        return y[: len(x)] + y[len(x) :]

    # ∂(w x + 10 w x)/∂w = 11 x
    model = One(branch)
    assert diagonal(model.eval(), ONE_TWO_THREE) == [1, 9, 4]
    assert not caplog.messages
    assert diagonal(model.train(), ONE_TWO_THREE) == [121, 1089, 484]
    assert caplog.messages == ["per-sample gradients one pass a sample for: l"]


def test_gradients_among_others_that_no_sample_has_alone():
    def trained_among_others(s, x):
        h = s.l(x) * x
        return h + 0 * x.detach() if len(x) > 1 else h.detach()

    # the last sample has none in either case
    assert diagonal(One(trained_among_others), torch.tensor([[1.0], [3.0], [0.0]])) == [0, 0, 0]


def test_a_second_order_loss():
    # ℓ = w x + (∂(w x)/∂x)² = w x + w², so that ∂ℓ/∂w = x + 2 w
    def with_slope(s, x):
        x = x.requires_grad_() if not x.requires_grad else x
        output = s.l(x)
        slope = torch.autograd.grad(output.sum(), x, create_graph=True)[0]
        return output + slope.square()

    x = torch.tensor([[1.0], [2.0]])
    assert diagonal(One(with_slope, weight=5.0), x) == [121, 144]


def test_a_second_order_loss_of_the_output():
    # ∂(Σ z²)/∂z = 2 z, so that ℓ = z + 2 z and ∂ℓ/∂w = 3 x; the derivative's own derivative counts
    def loss(z, _):
        return (z + torch.autograd.grad(z.square().sum(), z, create_graph=True)[0]).sum(1)

    assert diagonal(One(lambda s, x: s.l(x)), ONE_TWO_THREE, loss) == [9, 81, 36]


def test_a_transform_in_the_forward():
    # ∂(sin(w x))/∂x = w cos(w x); ∂/∂w at w = 1 is cos(x) − x sin(x)
    def slope(s, x):
        return torch.func.grad(lambda z: torch.sin(s.l(z)).sum())(x)

    expected = (ONE_TWO_THREE.cos() - ONE_TWO_THREE * ONE_TWO_THREE.sin())[:, 0].square()
    assert diagonal(One(slope), ONE_TWO_THREE) == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
def test_an_embedding_of_numbers_in_a_float_input(sparse):
    model = nn.Sequential(nn.Embedding(4, 2, sparse=sparse), nn.Linear(2, 1, bias=False))
    nn.init.ones_(model[1].weight)
    model.forward = lambda x: model[1](model[0](x[:, 0].long()))
    x = torch.tensor([[1.0], [3.0], [1.0]])
    gram = gs.gradient_gram(model, lambda z, _: z.sum(1), x, x)
    # the gradient of the chosen row is (1, 1), and of the others zero
    assert gram.layers["0"].tolist() == [[2, 0, 2], [0, 2, 0], [2, 0, 2]]


def test_sparse_gradients_beside_a_use_that_is_not_known():
    model = nn.EmbeddingBag(4, 2, mode="sum", sparse=True)
    x = torch.tensor([[0, 1], [1, 1], [2, 3]])
    gram = gs.gradient_gram(model, lambda z, _: z.sum(1), x, x)
    # one (1, 1) for each time that a row is chosen
    assert gram.total.tolist() == [[4, 4, 0], [4, 8, 0], [0, 0, 4]]


def test_gradients_below_the_squares_of_float32():
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0]]) * 1e-30
    for model in (nn.Linear(2, 1, bias=False), nn.Conv1d(1, 1, 2, bias=False)):
        rows = x if isinstance(model, nn.Linear) else x[:, None]
        gram = gs.gradient_gram(model, lambda z, _: z.flatten(1).sum(1), rows, rows)
        expected = torch.tensor([[5.0, 1.0], [1.0, 10.0]], dtype=torch.float64) * 1e-60
        torch.testing.assert_close(gram.total, expected, rtol=1e-6, atol=0)
    # Σ_s over two positions of 16 times the two features, for each of 32 outputs
    sequence = torch.stack([x, x], 1).tile(16)
    gram = gs.gradient_gram(
        nn.Linear(32, 32, bias=False), lambda z, _: z.sum((1, 2)), sequence, sequence
    )
    torch.testing.assert_close(gram.total, expected * 2 * 2 * 16 * 32, rtol=1e-6, atol=0)


def test_a_checkpoint_that_keeps_no_graph_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    x, y = torch.randn(3, 4), torch.tensor([0, 1, 2])

    def forward(x, *, reentrant):
        return model[1](checkpoint(model[0], x.requires_grad_(), use_reentrant=reentrant))

    model.forward = lambda x: forward(x, reentrant=True)
    with pytest.raises(ArgumentError, match="use_reentrant=False"):
        gs.gradient_gram(model, cross_entropy, x, y)
    model.forward = lambda x: forward(x, reentrant=False)
    gram = gs.gradient_gram(model, cross_entropy, x, y)
    expected = stored_grams(model, cross_entropy, x, y)
    assert relative_error(gram.total, sum(expected.values())) < 1e-5


def test_more_samples_than_there_are_weights():
    # swapped pairs far apart, which one weighted pass with repeated weights might not see
    def swapped(s, x):
        order = torch.arange(len(x))
        if len(x) > 250:
            order[3], order[250] = 250, 3
        return s.l(x[order])[order]

    x = torch.arange(300.0)[:, None]
    assert diagonal(One(swapped), x) == x[:, 0].square().tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_checked_and_needs_no_further_pass(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3)).to(dtype)
    x, y = torch.randn(5, 4).to(dtype), torch.tensor([0, 1, 2, 0, 1])
    gram = gs.gradient_gram(model, cross_entropy, x, y)
    assert gram.fallbacks == ()
    expected = stored_grams(model, cross_entropy, x, y)
    assert relative_error(gram.total, sum(expected.values())) < 0.05


@pytest.mark.parametrize(("times", "seen"), MODELS)
@pytest.mark.parametrize("together", [True, False])
def test_passes_within_the_backward_pass(times, seen, together, monkeypatch):
    if not together:  # then a parameter is asked for by itself
        monkeypatch.setattr(one_by_one, "_STACKED", 1)
    torch.manual_seed(0)
    model = Recomputing(times=times, seen=seen)
    x = torch.randn(4, 3, dtype=torch.float64)
    rows = gradients_one_by_one(model, (model(x[i : i + 1]).square().sum() for i in range(4)))
    gram = gs.gradient_gram(model, lambda output, _: output.square().sum(1), x, x)
    assert gram.fallbacks == ("inner",)
    torch.testing.assert_close(gram.total, rows @ rows.T)
    assert all(parameter.grad is None for parameter in model.parameters())

    def loss(output, _):
        return output.square().sum()

    conflict = sum_of(gs.domain_conflict(model, loss, [(x[i : i + 1], None) for i in range(2)]))
    torch.testing.assert_close(conflict.gram, (rows @ rows.T)[:2, :2])
