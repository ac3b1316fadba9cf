"""`gradient_gram` where shapes alone, or a look beforehand, would give a wrong number."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import gradsurgery as gs
from gradsurgery.errors import ArgumentError
from gradsurgery.gradients.model_state import unchanged
from tests.gradients.oracle import cross_entropy, relative_error, stored_grams

ONE_TWO_THREE = torch.tensor([[1.0], [3.0], [2.0]])


class One(nn.Module):
    """A weight of 1, in whatever function of it and the samples."""

    def __init__(self, function, weight=1.0) -> None:
        super().__init__()
        self.l = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.l.weight, weight)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def diagonal(model, x, loss=lambda output, _: output.sum(1)) -> list[float]:
    return gs.gradient_gram(model, loss, x, torch.zeros(len(x))).total.diagonal().tolist()


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


class Remembers(nn.Module):
    """Caches, counters and running values in every place where a network may keep them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 3))
        self.table = nn.Embedding(4, 2, max_norm=0.5)
        self.register_buffer("top", torch.zeros(()))
        self.cache = {}
        self.calls = 0
        self.history = [torch.zeros(2)]
        self.array = np.zeros(2)
        self.last = None
        self.draws = torch.Generator().manual_seed(3)
        self.unregistered = [nn.Dropout(0.0)]

    def forward(self, x):
        self.top = torch.maximum(self.top, x.detach().abs().max())
        self.history[0] += 1
        self.history.append(x)
        self.calls += 1
        self.array += 1
        self.last = x
        self.unregistered[0].p = 0.5
        self.cache["bias"] = self.cache.get("bias", torch.zeros(3)) + 1
        torch.rand((), generator=self.draws)
        random.random()
        np.random.rand()  # noqa: NPY002, because networks do
        self.linear.weight.register_hook(lambda gradient: gradient)
        self.train()
        x = x + self.table(x[:, 0].abs().long() % 4)
        return self.linear(x) + (self.cache["bias"] - 1)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_the_model_is_different_afterwards(fails):
    torch.manual_seed(0)
    model, x, y = Remembers().eval(), torch.randn(3, 2), torch.tensor([0, 1, 2])
    model.linear.parametrizations.weight.original.grad = kept = torch.ones(3, 2)
    table = model.table.weight.detach().clone()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    generators = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    draws = model.draws.get_state()

    def loss(z, y):
        if fails:
            raise RuntimeError("the loss fails")
        return cross_entropy(z, y)

    if fails:
        with pytest.raises(ArgumentError, match="the loss fails"):
            gs.gradient_gram(model, loss, x, y)
    else:
        gs.gradient_gram(model, loss, x, y)
    assert torch.equal(model.table.weight, table)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert (model.cache, model.calls, model.last, len(model.history)) == ({}, 0, None, 1)
    assert model.history[0].tolist() == [0, 0] == model.array.tolist()
    assert model.unregistered[0].p == 0
    assert not any(layer.training for layer in model.modules())
    assert model.linear.parametrizations.weight.original.grad is kept
    assert torch.equal(kept, torch.ones(3, 2))
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert np.random.get_state()[1].tolist() == generators[1]  # noqa: NPY002
    assert torch.equal(model.draws.get_state(), draws)


def test_what_python_and_numpy_draw_is_drawn_again():
    with unchanged(nn.Linear(1, 1)) as state:
        drawn = []
        for _ in range(3):  # the checks of types in tests draw before the first
            drawn.append((random.random(), np.random.rand(), float(torch.rand(()))))  # noqa: NPY002
            state.restore()
    assert drawn[1] == drawn[2]


def test_a_cache_filled_in_evaluation_mode_without_gradients_is_not_kept():
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.ones(1))
            self.cached = None

        def forward(self, x):
            if self.training:
                self.cached = None
                return x * self.bias.exp()
            if self.cached is None:
                self.cached = self.bias.exp()
            return x * self.cached

    model = Biased().eval()
    # ∂(x e^p)/∂p = x e^p, at p = 1
    e = float(torch.ones(()).exp())
    assert diagonal(model, ONE_TWO_THREE) == pytest.approx([e**2, 9 * e**2, 4 * e**2])
    assert model.cached is None
    assert diagonal(model.train(), ONE_TWO_THREE) == pytest.approx([e**2, 9 * e**2, 4 * e**2])


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


class Mixing(nn.Linear):
    """Mixes the samples, drops out in training, and gives its output in some form."""

    def __init__(self, function, form=lambda z: z) -> None:
        super().__init__(4, 3)
        self.function, self.form = function, form

    def forward(self, x):
        h = functional.dropout(self.function(x), 0.5, self.training)
        return self.form(super().forward(h))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x - x.mean(0),
        lambda x: x - x.mean(0).detach(),
        lambda x: x / x.abs().max().item(),
        lambda x: x[x[:, 0].argsort()],
        lambda x: x + x.flip(0).detach(),
        lambda x: functional.batch_norm(x, None, None, training=True),
        lambda x: x if bool((x[0] > 0).any()) else -x,
    ],
)
def test_samples_that_see_each_other_are_refused(function, training):
    torch.manual_seed(0)
    x = torch.randn(4, 4)
    x[0] = -x[0].abs() - 1
    with pytest.raises(ArgumentError, match=r"see each other|not on sample 0 alone"):
        gs.gradient_gram(Mixing(function).train(training), cross_entropy, x, torch.arange(4) % 3)


FORMS = {
    "tensor": (lambda z: z, lambda output: output),
    "tuple": (lambda z: (z, z.mean()), lambda output: output[0]),
    "dictionary": (lambda z: {"logits": z, "layers": [z]}, lambda output: output["layers"][0]),
    "object": (lambda z: SimpleNamespace(logits=z), lambda output: output.logits),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "loss",
    [
        lambda z, y: cross_entropy(z, y) / len(y),
        lambda z, y: cross_entropy(z, y) * (y == 0).sum(),
        lambda z, y: cross_entropy(z, y) * (y[:, None] == y).sum(1),  # 1 for the last sample
        lambda z, y: cross_entropy(z - z.mean(0), y),
        lambda z, y: cross_entropy(z, y) * z.detach().max(),
        lambda z, y: cross_entropy(z * torch.rand_like(z), y) / len(y),
        lambda z, y: -(z @ z.T).log_softmax(1).diagonal(),  # contrastive
    ],
)
def test_losses_that_see_each_other_are_refused(loss, form, training):
    torch.manual_seed(0)
    wrap, unwrap = FORMS[form]
    model = Mixing(lambda x: x, wrap).train(training)
    with pytest.raises(ArgumentError, match="or the loss"):
        gs.gradient_gram(
            model, lambda z, y: loss(unwrap(z), y), torch.randn(3, 4), torch.tensor([0, 0, 1])
        )


@pytest.mark.parametrize("form", FORMS)
def test_dropout_of_each_sample_and_outputs_in_any_form(form):
    """ℓ = Σ z for z = W (m ∘ x) / 0.5: every row of W has the gradient m ∘ x / 0.5."""
    wrap, unwrap = FORMS[form]
    model, x = Mixing(lambda x: x, wrap).train(), torch.randn(5, 4)
    model.bias.requires_grad_(False)
    torch.manual_seed(3)
    dropped = functional.dropout(x, 0.5)
    torch.manual_seed(3)
    gram = gs.gradient_gram(model, lambda z, _: unwrap(z).sum(1), x, x)
    torch.testing.assert_close(gram.total, 3 * (dropped @ dropped.T).double())


def test_dropout_as_accelerators_compute_it():
    """For z = w · (m ∘ x) / 0.25 the gradient is (m ∘ x) / 0.25."""
    x = torch.arange(1.0, 6)[:, None]
    for seed in range(3):
        torch.manual_seed(seed)
        mask = torch.native_dropout(x, 0.75, True)[1]
        model = One(lambda s, x: torch.native_dropout(s.l(x), 0.75, True)[0])
        torch.manual_seed(seed)
        assert diagonal(model, x) == (x * mask * 4).square().flatten().tolist()


def test_random_numbers_of_a_coarser_type_do_not_coarsen_the_check():
    """A sample alone is normalised with another ε: by 1e-6 of it, its gradient is another."""
    torch.manual_seed(0)
    norm = nn.LayerNorm(3).double()
    linear = nn.Linear(3, 3).double()

    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = linear, norm

        def forward(self, x):
            return self.norm(self.linear(x) / len(x)) * torch.rand(len(x), 1)

    x = torch.randn(2, 3, dtype=torch.float64)
    with pytest.raises(ArgumentError, match="see each other"):
        gs.gradient_gram(Halved(), lambda z, _: z[:, 0], x, x)


def test_the_size_of_the_batch_beside_dropout():
    model = Mixing(lambda x: x / len(x)).train()
    with pytest.raises(ArgumentError, match="see each other"):
        gs.gradient_gram(model, cross_entropy, torch.randn(3, 4), torch.tensor([0, 0, 1]))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x * torch.bernoulli(x.sigmoid()), "random numbers by bernoulli"),
        (lambda x: functional.rrelu(x, training=True), "random numbers by rrelu"),
        (
            lambda x: checkpoint(functional.dropout, x, use_reentrant=False),
            "random numbers inside torch.utils.checkpoint",
        ),
        (lambda x: x * torch.rand(len(x) + 1, 1)[1:], r"numbers of shape \[2, 1\] for sample"),
    ],
)
def test_random_numbers_that_cannot_be_given_to_a_sample_alone_are_refused(function, words):
    x, y = torch.randn(3, 4), torch.tensor([0, 0, 1])
    with pytest.raises(ArgumentError, match=words):
        gs.gradient_gram(Mixing(function).eval(), cross_entropy, x, y)


def test_losses_in_other_forms():
    x = torch.tensor([[1.0], [3.0]])
    model = One(lambda s, x: s.l(x))
    assert diagonal(model, x, lambda z, _: z.sum()) == [1, 9]
    assert diagonal(model, x, lambda z, _: z.sum(0)[0] if len(z) > 1 else z[0]) == [1, 9]
    assert diagonal(model, x[:1], lambda z, _: z.sum()) == [1]
    with pytest.raises(ArgumentError, match=r"expected shape \[2\] or a scalar, found \[1\]"):
        diagonal(model, x, lambda z, _: z.sum(0))
    named = One(lambda s, x: {"logits": s.l(x)})
    assert diagonal(named, x, lambda z, _: z["logits"].sum(1)) == [1, 9]
    assert diagonal(named, x, lambda z, _: z["logits"].sum()) == [1, 9]
    whole = One(lambda s, x: {"mean": s.l(x).mean()})
    with pytest.raises(ArgumentError, match=r"expected a tensor with 2 rows.*found dict"):
        diagonal(whole, x, lambda z, _: z["mean"])


def test_parameters_that_have_no_inner_products():
    x = torch.randn(2, 3)
    with pytest.raises(ArgumentError, match="call the model once"):
        gs.gradient_gram(nn.LazyLinear(2), cross_entropy, x, torch.tensor([0, 1]))
    with pytest.raises(ArgumentError, match="complex"):
        gs.gradient_gram(
            nn.Linear(3, 2, dtype=torch.complex64), cross_entropy, x, torch.tensor([0, 1])
        )


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
