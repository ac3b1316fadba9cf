"""Drawn stacks of every supported layer against gradients stored one backward pass at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from gradsurgery import gradient_gram
from gradsurgery.gradients import layers as known
from tests.gradients.oracle import cross_entropy, relative_error, stored_grams

BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-10}


def check(model, x, y, dtype=torch.float64, loss=cross_entropy, fallbacks=()):
    model = model.to(dtype).eval()
    x = x.to(dtype) if x.is_floating_point() else x
    gram = gradient_gram(model, loss, x, y)
    expected = stored_grams(model, loss, x, y)
    assert gram.fallbacks == fallbacks
    assert gram.layers.keys() == expected.keys()
    for layer, matrix in expected.items():
        assert relative_error(gram.layers[layer], matrix) < BOUNDS[dtype], layer
    assert relative_error(gram.total, sum(expected.values())) < BOUNDS[dtype]
    return gram


class Parts(nn.Module):
    """Layers, then the mean over whatever dimensions are left, then a classifier."""

    def __init__(self, *layers: nn.Module, width: int, channels: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.channels = channels
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.layers(x).movedim(self.channels, -1)
        return self.head(x.flatten(1, -2).mean(1) if x.ndim > 2 else x)


@st.composite
def convolutions(draw, dimensions):
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    kernel = draw(st.tuples(*[st.integers(1, 4)] * dimensions))
    dilation = draw(st.integers(1, 2))
    stride = draw(st.tuples(*[st.integers(1, 3)] * dimensions))
    padding = draw(st.sampled_from([0, 1, 2, "same", "valid"]))
    kind = {1: nn.Conv1d, 2: nn.Conv2d}[dimensions]
    return kind(
        groups * draw(st.integers(1, 3)),
        4 * draw(st.integers(1, 3)),
        kernel,
        stride=1 if padding == "same" else stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "circular"])),
    )


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@given(st.data(), st.sampled_from(sorted(BOUNDS, key=str)), st.integers(1, 5))
def test_convolutions_and_norms(data, dtype, samples):
    torch.manual_seed(data.draw(st.integers(0, 99)))
    dimensions = data.draw(st.integers(1, 2))
    layer = data.draw(convolutions(dimensions))
    batch_norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[dimensions](layer.out_channels)
    with torch.no_grad():
        batch_norm.running_mean.normal_()
        batch_norm.running_var.uniform_(0.5, 2)
        batch_norm.weight.normal_()
    norm = data.draw(
        st.sampled_from([batch_norm, nn.GroupNorm(2, layer.out_channels), nn.Identity()])
    )
    size = data.draw(st.integers(10, 14))
    model = Parts(layer, norm, nn.ReLU(inplace=True), width=layer.out_channels)
    x = torch.randn(samples, layer.in_channels, *[size] * dimensions)
    check(model, x, torch.randint(3, (samples,)), dtype)


@given(
    st.sampled_from(sorted(BOUNDS, key=str)),
    st.integers(1, 5),
    st.lists(st.integers(1, 6), max_size=2),
    st.integers(1, 40),
    st.booleans(),
)
def test_linear_on_any_leading_dimensions_and_layer_norm(dtype, samples, inner, width, bias):
    torch.manual_seed(len(inner) + width)
    layers = [nn.Linear(width, 7, bias=bias), nn.GELU(), nn.LayerNorm([*inner[1:], 7])]
    model = Parts(*layers, width=7, channels=-1)
    check(model, torch.randn(samples, *inner, width), torch.randint(3, (samples,)), dtype)


@given(st.integers(1, 5), st.integers(1, 6), st.sampled_from([None, 0, -1]))
def test_embeddings(samples, length, padding):
    torch.manual_seed(length)
    model = Parts(nn.Embedding(9, 4, padding), nn.LayerNorm(4), width=4, channels=-1)
    check(model, torch.randint(9, (samples, length)), torch.randint(3, (samples,)))


@pytest.mark.parametrize("piece", [1, 200, 10_000])
@pytest.mark.parametrize("groups", [1, 3])
def test_pieces_of_any_size(piece, groups, monkeypatch):
    for module in ("layers", "layers.linear"):
        monkeypatch.setattr(f"gradsurgery.gradients.{module}.PIECE", piece)
    assert piece == known.PIECE
    torch.manual_seed(piece)
    model = Parts(
        nn.Conv2d(6, 12, 3, stride=2, groups=groups), nn.Conv2d(12, 6, 3, groups=groups), width=6
    )
    check(model, torch.randn(4, 6, 9, 9), torch.randint(3, (4,)))
    sequence = Parts(nn.Embedding(20, 5), nn.Linear(5, 30), nn.Linear(30, 4), width=4, channels=-1)
    check(sequence, torch.randint(20, (4, 2)), torch.randint(3, (4,)))


def test_a_strided_convolution_of_few_channels_at_full_size():
    torch.manual_seed(0)
    model = Parts(nn.Conv2d(3, 4, 11, stride=4, padding=2), width=4)
    check(model, torch.randn(2, 3, 100, 90), torch.randint(3, (2,)))


class Shared(nn.Module):
    """A layer called twice, a parameter used twice, and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(5))
        self.convolution = nn.Conv2d(2, 2, 3, padding=1)
        self.linear = nn.Linear(5, 5)
        self.tied = nn.Linear(5, 5, bias=False)
        self.tied.weight = self.linear.weight
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = self.convolution(self.convolution(x).tanh()).mean(1)
        x = self.norm(self.linear(x).tanh() * self.scale)
        x = self.tied(self.norm(self.linear(x))) + self.scale
        return self.head(x.mean(1))


@pytest.mark.parametrize("piece", [1, known.PIECE])
def test_all_calls_of_a_shared_parameter_count(piece, monkeypatch):
    monkeypatch.setattr("gradsurgery.gradients.layers.PIECE", piece)
    torch.manual_seed(0)
    check(Shared(), torch.randn(4, 2, 5, 5), torch.randint(3, (4,)))


class Tokens(nn.Module):
    """Parameters put beside, added to and multiplied with the samples, as vision nets do."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.place = nn.Parameter(torch.randn(1, 6, 4))
        self.gamma = nn.Parameter(torch.randn(4))
        self.bias = nn.Parameter(torch.randn(3, 4, 2, 2))
        self.temperature = nn.Parameter(torch.tensor(0.7))
        self.register_buffer("index", torch.tensor([0, 2, 2, 1]))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        x = (x + self.place).mul_(self.gamma) - self.temperature
        windows = x.reshape(-1, 3, 4)  # two a sample
        table = self.bias[self.index].permute(1, 0, 2, 3)[:3, :, 0, 0]
        x = (self.temperature * windows + table).tanh().reshape(len(x), 6, 4)
        return self.head(x.mean(1))


def test_parameters_that_meet_the_samples():
    torch.manual_seed(0)
    check(Tokens(), torch.randn(5, 5, 4), torch.randint(3, (5,)))


class Unknown(nn.Module):
    """Uses without a fast formula: each by itself and beside a known one."""

    def __init__(self) -> None:
        super().__init__()
        self.scaled = nn.Conv2d(2, 4, 3)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.slope = nn.PReLU(4)
        self.twofold = nn.Linear(4, 4)
        self.fine = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        weight = self.scaled.weight / self.scaled.weight.norm()
        x = functional.conv2d(x, weight, self.scaled.bias).flatten(2)
        x = self.slope(x).transpose(1, 2)
        x = self.attention(x, x, x, need_weights=False)[0]
        x = self.fine(self.twofold(x) @ self.twofold.weight)
        return self.head(x.mean(1))


def test_other_uses_fall_back_and_are_named():
    torch.manual_seed(0)
    named = ("scaled", "attention", "attention.out_proj", "slope", "twofold")
    check(Unknown(), torch.randn(4, 2, 5, 5), torch.randint(3, (4,)), fallbacks=named)


class ByName(nn.Module):
    """Functions without a fast formula that take a parameter as `weight`, as known ones do."""

    def __init__(self) -> None:
        super().__init__()
        self.spread = nn.Parameter(torch.randn(2, 4, 3, 3))
        self.slope = nn.Parameter(torch.rand(4))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = functional.conv_transpose2d(x, weight=self.spread)
        return self.head(functional.prelu(x, weight=self.slope).mean((2, 3)))


def test_unknown_functions_of_a_weight_given_by_name():
    torch.manual_seed(0)
    check(ByName(), torch.randn(4, 2, 5, 5), torch.randint(3, (4,)), fallbacks=("ByName",))


class SequenceFirst(nn.Module):
    """Positions before samples, as many as there are samples: shapes alone do not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.mixing = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.mixing(x.transpose(0, 1)).tanh().mean(0))


def test_rows_that_are_not_the_samples_are_recognised():
    torch.manual_seed(0)
    fallbacks = ("mixing",)
    check(SequenceFirst(), torch.randn(4, 4, 4), torch.randint(3, (4,)), fallbacks=fallbacks)


class Dropped(nn.Module):
    """Dropout before uses that are not known, one of them of a parameter with a known use too."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.dropout = nn.Dropout(rate)
        self.slope = nn.PReLU(8)
        self.last = nn.Linear(8, 6)

    def forward(self, x):
        x = self.slope(self.dropout(self.first(x)))
        return self.last(x) + x @ self.last.weight.T


@settings(max_examples=10)
@given(st.floats(0.1, 0.9))
def test_dropout_gives_each_sample_its_mask_also_with_a_fallback(rate):
    torch.manual_seed(0)
    model = Dropped(rate).double()
    x, y = torch.randn(4, 6, dtype=torch.float64), torch.randint(3, (4,))
    torch.manual_seed(1)
    gram = gradient_gram(model, cross_entropy, x, y)
    assert gram.fallbacks == ("slope", "last")
    torch.manual_seed(1)
    losses = cross_entropy(model(x), y)
    parameters = list(model.parameters())
    found = [torch.autograd.grad(one, parameters, retain_graph=True) for one in losses]
    rows = [torch.cat([gradient.flatten() for gradient in gradients]) for gradients in found]
    expected = torch.stack(rows) @ torch.stack(rows).T
    assert relative_error(gram.total, expected) < 1e-10


class Positions(nn.Module):
    """Embeddings of positions, which have a row for each position and not for each sample."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, 4) if words else nn.Linear(4, 4)
        self.places = nn.Embedding(6, 4)
        self.kinds = nn.Embedding(2, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        places = torch.arange(6)
        x = self.words(x) + self.places(places) + self.kinds(torch.zeros_like(places))
        return self.head(x.tanh().mean(1))


@pytest.mark.parametrize("words", [0, 9])
def test_embeddings_of_positions_are_not_the_samples(words):
    torch.manual_seed(0)
    x = torch.randint(words, (3, 6)) if words else torch.randn(3, 6, 4)
    check(Positions(words), x, torch.randint(3, (3,)), fallbacks=("places", "kinds"))


class Written(nn.Module):
    """Something of the samples written into a parameter's view before it meets them again."""

    def __init__(self, *, whole: bool) -> None:
        super().__init__()
        self.whole = whole
        self.inner = nn.Linear(5, 4)
        self.token = nn.Parameter(torch.randn(1, 4))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.inner(x)
        token = self.token.repeat(len(x), 1)
        if self.whole:
            token += x.square()
        else:
            token[:, :2] = x[:, 2:]
        return self.head(torch.cat([token, x.tanh()], 1))


@pytest.mark.parametrize("whole", [True, False])
def test_a_view_that_samples_are_written_into(whole):
    torch.manual_seed(0)
    check(Written(whole=whole), torch.randn(4, 5), torch.randint(3, (4,)), fallbacks=("Written",))


class Later(nn.Module):
    """A parameter's view that is changed after it met the samples, and one without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(1, 5))
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        place = self.place.clone()
        x = x + place
        place.mul_(3)
        with torch.no_grad():
            shift = self.place.expand(len(x), -1), self.place.repeat(len(x), 1)
        return self.head(x.tanh() + shift[0] + shift[1])


def test_views_that_are_changed_later_or_have_no_gradient():
    torch.manual_seed(0)
    check(Later(), torch.randn(4, 5), torch.randint(3, (4,)))


def test_a_known_use_that_the_losses_do_not_reach_beside_one_that_is_not_known():
    class Model(nn.Linear):
        def forward(self, x):
            super().forward(x.detach())
            return functional.dropout(x, training=self.training) @ self.weight.T + self.bias

    torch.manual_seed(0)
    model, x, y = Model(6, 3).double(), torch.randn(4, 6).double(), torch.randint(3, (4,))
    torch.manual_seed(1)
    gram = gradient_gram(model, cross_entropy, x, y)
    torch.manual_seed(1)
    rows = [
        torch.cat(
            [g.flatten() for g in torch.autograd.grad(one, model.parameters(), retain_graph=True)]
        )
        for one in cross_entropy(model(x), y)
    ]
    assert relative_error(gram.total, torch.stack(rows) @ torch.stack(rows).T) < 1e-10


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_dropout_on_a_cuda_device_gives_each_sample_its_mask_also_with_a_fallback():
    torch.manual_seed(0)
    model = Dropped(0.5).double().cuda()
    x, y = torch.randn(4, 6).double().cuda(), torch.randint(3, (4,)).cuda()
    torch.manual_seed(1)
    gram = gradient_gram(model, cross_entropy, x, y)
    torch.manual_seed(1)
    rows = [
        torch.cat(
            [
                g.flatten()
                for g in torch.autograd.grad(one, [*model.parameters()], retain_graph=True)
            ]
        )
        for one in cross_entropy(model(x), y)
    ]
    expected = (torch.stack(rows) @ torch.stack(rows).T).cpu()
    assert relative_error(gram.total, expected) < 1e-10
