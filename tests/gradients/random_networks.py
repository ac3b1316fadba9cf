"""Networks from a grammar: layers, indexing, routing, sharing, caching, training-only branches.

A part maps [samples, 4] to [samples, 4]. `MIXING` are the parts in which samples see each other, in
their values, in their gradients or in both, so that none has a gradient of its own.
"""

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

WIDTH = 4
Function = Callable[["Part", Tensor], Tensor]


class Part(nn.Module):
    """A function of the samples, with parameters of all kinds to choose from."""

    def __init__(self, name: str, linear: nn.Linear, *, only_in_training: bool) -> None:
        super().__init__()
        self.name = name
        self.only_in_training = only_in_training
        self.linear = linear
        for each in NEEDED.get(name, ()):
            self.add_module(each, LAYERS[each]())
        if name in ("scaled", "placed", "beside", "own sum", "through itself"):
            self.vector = nn.Parameter(torch.randn(WIDTH))
        self.register_buffer("top", torch.zeros(()))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.kept: dict[str, Tensor] = {}
        self.cache = None
        self.drawn: Tensor | None = None
        self.given: Tensor | None = None

    def draw(self, make: Callable[[], Tensor]) -> Tensor:
        """Random numbers, or those that were given."""
        self.drawn = (make() if self.given is None else self.given).detach()
        return self.drawn

    def train(self, mode: bool = True) -> "Part":
        super().train(mode)
        if self.name == "frozen statistics":
            self.batch_norm.eval()
        return self

    def forward(self, h: Tensor) -> Tensor:
        if self.only_in_training and not self.training:
            return h
        return {**APART, **MIXING, **RANDOM}[self.name](self, h)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "norm": lambda: nn.LayerNorm(WIDTH),
    "group": lambda: nn.GroupNorm(2, WIDTH),
    "second": lambda: nn.Linear(WIDTH, WIDTH),
    "narrow": lambda: nn.Linear(WIDTH // 2, WIDTH // 2),
    "convolution": lambda: nn.Conv1d(1, 2, 3, padding=1),
    "embedding": lambda: nn.Embedding(5, WIDTH),
    "sparse": lambda: nn.Embedding(5, WIDTH, sparse=True),
    "bounded": lambda: nn.Embedding(5, WIDTH, max_norm=0.5),
    "slope": lambda: nn.PReLU(WIDTH),
    "attention": lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True),
    "recurrent": lambda: nn.GRU(WIDTH, WIDTH, batch_first=True),
    "batch_norm": lambda: nn.BatchNorm1d(WIDTH),
    "spectral": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)),
}
NEEDED = {
    "normed": ["norm"],
    "grouped": ["group"],
    "frozen statistics": ["batch_norm"],
    "experts": ["second"],
    "windows": ["narrow"],
    "windows first": ["narrow"],
    "turned windows": ["narrow"],
    "convolved": ["convolution"],
    "embedded": ["embedding"],
    "embedded sparsely": ["sparse"],
    "embedded and bounded": ["bounded"],
    "sloped": ["slope"],
    "attended": ["attention"],
    "recurrent": ["recurrent"],
    "spectral": ["spectral"],
    "twice": ["norm"],
}


def _sorted(part: Part, h: Tensor) -> Tensor:
    order = h[:, 0].argsort()
    return part.linear(h[order])[order.argsort()]


def _experts(part: Part, h: Tensor) -> Tensor:
    chosen = h[:, 0] > 0
    result = torch.zeros_like(h)
    result[chosen] = part.linear(h[chosen])
    result[~chosen] = part.second(h[~chosen]).tanh()
    return result


def _concatenated(part: Part, h: Tensor) -> Tensor:
    both = part.linear(torch.cat([h, 10 * h]))
    return both[: len(h)].tanh() + both[len(h) :]


def _sequence_first(part: Part, h: Tensor) -> Tensor:
    return part.linear(torch.stack([h, h.tanh(), h.square()])).tanh().mean(0)


def _windows(part: Part, h: Tensor) -> Tensor:
    return part.narrow(h.reshape(-1, WIDTH // 2)).tanh().reshape(h.shape)


def _windows_first(part: Part, h: Tensor) -> Tensor:
    windows = h.reshape(len(h), 2, WIDTH // 2).transpose(0, 1).reshape(-1, WIDTH // 2)
    windows = part.narrow(windows).tanh().reshape(2, len(h), WIDTH // 2)
    return windows.transpose(0, 1).reshape(h.shape)


def _slope_of_energy(part: Part, h: Tensor) -> Tensor:
    h = h if h.requires_grad else h.detach().requires_grad_()
    energy = part.linear(h).tanh().sum()
    return h + torch.autograd.grad(energy, h, create_graph=True)[0]


def _slope_by_transform(part: Part, h: Tensor) -> Tensor:
    return h + torch.func.grad(lambda z: part.linear(z).tanh().square().sum())(h)


def _mapped(part: Part, h: Tensor) -> Tensor:
    return torch.func.vmap(lambda row: part.linear(row).tanh())(h)


def _remembered(part: Part, h: Tensor) -> Tensor:
    with torch.no_grad():
        part.top.copy_(torch.maximum(part.top, h.abs().max()))
        part.kept["last"] = h
        part.cache = h.detach()
    return part.linear(h)


def _counted(part: Part, h: Tensor) -> Tensor:
    part.calls += 1
    part.kept["calls"] = part.calls.clone()
    return part.linear(h) * (1 + part.calls)


def _cached(part: Part, h: Tensor) -> Tensor:
    if part.cache is None or part.cache.dtype != h.dtype:
        part.cache = torch.linspace(0, 1, WIDTH, dtype=h.dtype)
        part.kept["size"] = part.cache
    return part.linear(h) + part.cache


def _written(part: Part, h: Tensor) -> Tensor:
    h = part.linear(h)
    h[:, 0] = h[:, 1].tanh()
    return h.mul_(0.5)


def _own_hook(part: Part, h: Tensor) -> Tensor:
    h = part.linear(h)
    if h.requires_grad:
        h.register_hook(lambda gradient: gradient.clamp(-0.05, 0.05))
    return h.tanh()


def _beside(part: Part, h: Tensor) -> Tensor:
    return part.linear(torch.cat([part.vector[:2].expand(len(h), -1), h[:, :2]], 1)).tanh()


def _heads(part: Part, h: Tensor) -> Tensor:
    """Attention over two places with two heads, as transformers write it."""
    tokens = part.linear(torch.stack([h, h.tanh()], 1)).unflatten(2, (2, 2))
    query, key, value = torch.stack([tokens, tokens.tanh(), -tokens]).permute(0, 1, 3, 2, 4)
    return (
        functional.scaled_dot_product_attention(query, key, value)
        .transpose(1, 2)
        .flatten(2)
        .mean(1)
    )


APART: dict[str, Function] = {
    "linear": lambda part, h: part.linear(h).tanh(),
    "in place": lambda part, h: part.linear(h).relu_(),
    "normed": lambda part, h: part.norm(h),
    "twice": lambda part, h: part.norm(part.linear(part.norm(h))),
    "grouped": lambda part, h: part.group(h),
    "frozen statistics": lambda part, h: part.batch_norm(h),
    "scaled": lambda part, h: part.linear(h) * part.vector,
    "placed": lambda part, h: (h + part.vector[None]).tanh() * part.vector,
    "beside": _beside,
    "own sum": lambda part, h: h * part.vector.sum(),
    "residual": lambda part, h: h + part.linear(h).square(),
    "backwards": lambda part, h: part.linear(h.flip(0)).flip(0),
    "sorted": _sorted,
    "experts": _experts,
    "concatenated": _concatenated,
    "sequence first": _sequence_first,
    "windows": _windows,
    "windows first": _windows_first,
    "convolved": lambda part, h: part.convolution(h[:, None]).mean(1),
    "embedded": lambda part, h: h + part.embedding(h[:, 0].abs().long() % 5),
    "embedded sparsely": lambda part, h: h + part.sparse(h[:, :2].abs().long() % 5).sum(1),
    "embedded and bounded": lambda part, h: h + part.bounded(h[:, 0].abs().long() % 5),
    "sloped": lambda part, h: part.slope(h),
    "attended": lambda part, h: part.attention(*[torch.stack([h, h * 2], 1)] * 3)[0].mean(1),
    "recurrent": lambda part, h: part.recurrent(torch.stack([h, -h], 1))[0][:, -1],
    "spectral": lambda part, h: part.spectral(h),
    "transposed": lambda part, h: part.linear(h) @ part.linear.weight,
    "weight divided": lambda part, h: functional.linear(
        h, part.linear.weight / part.linear.weight.norm()
    ),
    "slope of energy": _slope_of_energy,
    "slope by transform": _slope_by_transform,
    "mapped": _mapped,
    "checkpointed": lambda part, h: checkpoint(
        lambda z: part.linear(z).tanh(), h, use_reentrant=False
    ),
    "remembered": _remembered,
    "counted": _counted,
    "cached": _cached,
    "written": _written,
    "detached in part": lambda part, h: part.linear(h.detach()) + h,
    "without gradient": lambda part, h: h + part.linear(h).detach(),
    "straight through": lambda part, h: h + (part.linear(h).round() - h).detach(),
    "own largest": lambda part, h: part.linear(h) / h.abs().amax(1, keepdim=True).detach(),
    "own hook": _own_hook,
    "turned": lambda part, h: part.linear(h.t().contiguous().t()).tanh(),
    "turned windows": lambda part, h: (
        part.narrow(h.unflatten(1, (2, 2)).transpose(0, 1)).transpose(0, 1).flatten(1)
    ),
    "dealt out": lambda part, h: torch.cat(part.linear(h).tanh().split(2, 1)[::-1], 1),
    "heads": _heads,
    "own softmax": lambda part, h: part.linear(h).log_softmax(-1) + h.softmax(1),
    "own neighbours": lambda part, h: part.linear(
        functional.avg_pool1d(functional.pad(h[:, None], (1, 1)), 3, 1)[:, 0].roll(1, 1)
    ),
    "own length": lambda part, h: part.linear(h) / (h.norm(dim=1, keepdim=True) + 1),
    "one by one": lambda part, h: torch.stack([part.linear(row) for row in h]),
}


def _switched_by_the_batch(part: Part, h: Tensor) -> Tensor:
    return part.linear(h) if h.sum() > 0 else part.linear(h).square()


def _capacity(part: Part, h: Tensor) -> Tensor:
    chosen = h[:, 0].topk((len(h) + 1) // 2).indices
    result = h.clone()
    result[chosen] = part.linear(h[chosen])
    return result


def _running(part: Part, h: Tensor) -> Tensor:
    with torch.no_grad():
        part.top.mul_(0.5).add_(h.mean())
    return part.linear(h) + part.top


def _hook_of_the_size(part: Part, h: Tensor) -> Tensor:
    h = part.linear(h)
    if h.requires_grad:
        h.register_hook(lambda gradient: gradient / len(gradient))
    return h


MIXING: dict[str, Function] = {
    "centred": lambda part, h: part.linear(h - h.mean(0)),
    "centred without gradient": lambda part, h: part.linear(h - h.mean(0).detach()),
    "divided by the largest": lambda part, h: part.linear(h) / (h.abs().max().item() + 1),
    "by hand": lambda part, h: part.linear((h - h.mean(0)) / (h.var(0, correction=0) + 1).sqrt()),
    "neighbour": lambda part, h: part.linear(h) + h.roll(1, 0),
    "neighbour without gradient": lambda part, h: part.linear(h) + h.roll(1, 0).detach(),
    "left sorted": lambda part, h: part.linear(h[h[:, 0].argsort()]),
    "ranked": lambda part, h: part.linear(h) + h[:, :1].argsort(0).argsort(0),
    "of the size": lambda part, h: part.linear(h) / len(h),
    "numbered": lambda part, h: part.linear(h) * (1 + torch.arange(len(h))[:, None]),
    "switched by the batch": _switched_by_the_batch,
    "capacity": _capacity,
    "running": _running,
    "gradient alone": lambda part, h: part.linear(h + (h.mean(0) - h.mean(0).detach())),
    "hook of the size": _hook_of_the_size,
    "gradient of the size": lambda part, h: part.linear(h / len(h) + (h - h / len(h)).detach()),
    "softmax over all": lambda part, h: part.linear(h).softmax(0),
    "mean over all": lambda part, h: part.linear(h) + h.tanh().mean(0, keepdim=True),
    "first for all": lambda part, h: part.linear(h) + h[:1].expand(len(h), -1),
    "shifted": lambda part, h: part.linear(h) + functional.pad(h, (0, 0, 1, -1)),
    "viewed askew": lambda part, h: part.linear(h.t().reshape(h.shape)),
    "neighbours": lambda part, h: part.linear(
        functional.avg_pool1d(functional.pad(h.t()[None], (1, 1)), 3, 1)[0].t()
    ),
    "normed over all": lambda part, h: part.linear(functional.layer_norm(h, h.shape)),
    "product over all": lambda part, h: part.linear(h) + h @ (h.t() @ h).tanh(),
    "channels": lambda part, h: part.linear(
        functional.conv1d(h.t()[None], part.linear.weight[..., None])[0].t().cumsum(0)
    ),
    "attending to all": lambda part, h: part.linear(torch.softmax(h @ h.T, 1) @ h),
    "pairs": lambda part, h: (
        part.linear(h) + h[torch.arange(len(h)).bitwise_xor(1).clamp_max(len(h) - 1)]
    ),
}


def _mask(like: Tensor) -> Tensor:
    return functional.dropout(torch.ones_like(like), 0.4)


RANDOM: dict[str, Function] = {
    "dropout": lambda part, h: part.linear(h) * part.draw(lambda: _mask(h)),
    "noise": lambda part, h: part.linear(h + part.draw(lambda: torch.randn_like(h))),
    "scaled at random": lambda part, h: part.linear(h) * part.draw(lambda: torch.rand(len(h), 1)),
    "dropout of sequences": lambda part, h: part.linear(
        (torch.stack([h, h.tanh()]) * part.draw(lambda: _mask(torch.stack([h, h])))).sum(0)
    ),
    "dropout of weights": lambda part, h: functional.linear(
        h, part.linear.weight * part.draw(lambda: _mask(part.linear.weight))
    ),
}


class Network(nn.Module):
    """Parts, one after the other, and a classifier of three classes."""

    def __init__(self, parts: list[Part], head: nn.Module, form: str) -> None:
        super().__init__()
        self.parts = nn.Sequential(*parts)
        self.head = head
        self.form = form

    def forward(self, x: Tensor) -> Any:
        features = self.parts(x)
        return FORMS[self.form][0](self.head(features), features)


FORMS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Callable[[Any], Tensor]]] = {
    "logits": (lambda z, _: z, lambda output: output),
    "tuple": (lambda z, h: (h.square().mean(), z), lambda output: output[1]),
    "dictionary": (lambda z, h: {"layers": [h], "logits": z}, lambda output: output["logits"]),
    "object": (lambda z, _: SimpleNamespace(logits=z), lambda output: output.logits),
}
"""What a network gives, and how the logits are found in it."""


def random_network(choose: random.Random, *, mixing: float, drawing: float) -> Network:
    """A network of one to four parts.

    mixing, drawing: the probability that a part mixes samples, or draws random numbers.
    """
    parts: list[Part] = []
    for _ in range(choose.randint(1, 4)):
        kind = choose.random()
        names = MIXING if kind < mixing else RANDOM if kind < mixing + drawing else APART
        shared = bool(parts) and choose.random() < 0.25
        linear = choose.choice(parts).linear if shared else nn.Linear(WIDTH, WIDTH)
        training = choose.random() < 0.2
        parts.append(Part(choose.choice(sorted(names)), linear, only_in_training=training))
    form = "logits" if choose.random() < 0.6 else choose.choice(sorted(FORMS))
    network = Network(parts, nn.Linear(WIDTH, 3), form)
    if choose.random() < 0.2:
        choose.choice(list(network.parameters())).requires_grad_(False)
    return network.train(choose.random() < 0.5)


def is_apart(network: Network) -> bool:
    """Whether no part mixes the samples, or does so in training alone."""
    return not any(
        part.name in MIXING and (network.training or not part.only_in_training)
        for part in network.parts
    )
