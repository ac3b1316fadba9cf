"""The methods' objectives as their sources write them, on a copy of the network, by autograd.

A `Memory` is what a method carries from step to step; `drawn` is what it drew at this one.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from scipy.optimize import brentq
from scipy.stats import gaussian_kde
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn.functional import cross_entropy

Batches = list[tuple[Tensor, Tensor]]
LEARNING_RATE = 0.1


def network() -> nn.Sequential:
    """A tiny network in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3)]
        return nn.Sequential(*layers).double()


def batches(domains: int, size: int = 6, seed: int = 0) -> Batches:
    """Images of domains that differ in mean and scale, float64."""
    generator = torch.Generator().manual_seed(100 * seed + domains)
    return [
        (
            (1 + domain / 2) * torch.randn(size, 3, 2, 2, generator=generator).double() + domain,
            torch.randint(3, (size,), generator=generator),
        )
        for domain in range(domains)
    ]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """Plain steps, by which a gradient can be told from the parameters."""
    return torch.optim.SGD(parameters, lr=LEARNING_RATE)


def flat_gradient(loss: Tensor, model: nn.Module) -> Tensor:
    """∇loss, flat."""
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([gradient.reshape(-1) for gradient in gradients])


def flat_parameters(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@dataclass
class Drawn:
    """The pairs of domains and the shares λ that were drawn at the last step."""

    ring: list[tuple[int, int]] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)


@dataclass
class Memory:
    """What the methods carry from step to step."""

    q: list[float] | None = None
    averages: list[Tensor] | None = None
    weights: Tensor | None = None
    first: Tensor | None = None


def risks(model: nn.Module, data: Batches) -> list[Tensor]:
    return [cross_entropy(model(x), y) for x, y in data]


def irm_penalty(logits: Tensor, labels: Tensor) -> Tensor:
    """Appendix D of Arjovsky et al. 2019: double backward through a scale of 1."""
    scale = torch.ones((), dtype=logits.dtype, requires_grad=True)
    halves = [cross_entropy(scale * logits[i::2], labels[i::2]) for i in (0, 1)]
    first, second = (torch.autograd.grad(half, scale, create_graph=True)[0] for half in halves)
    return first * second


def irm_losses(model: nn.Module, data: Batches, weight: float) -> list[Tensor]:
    return [cross_entropy(model(x), y) + weight * irm_penalty(model(x), y) for x, y in data]


def vrex(model: nn.Module, data: Batches, weight: float) -> Tensor:
    """Equation 8 of Krueger et al. 2021 with the variance's whole derivative."""
    stacked = torch.stack(risks(model, data))
    return stacked.mean() + weight * stacked.var(correction=0)


def group_dro_weights(model: nn.Module, data: Batches, eta: float, memory: Memory) -> list[float]:
    """The weights q after their step."""
    values = [risk.item() for risk in risks(model, data)]
    before = memory.q or [1.0] * len(values)
    grown = [q * 2.718281828459045 ** (eta * v) for q, v in zip(before, values, strict=True)]
    memory.q = [q / sum(grown) for q in grown]
    return memory.q


def head_gradient(model: nn.Module, image: Tensor, label: Tensor) -> Tensor:
    """One image's gradient in the last layer, differentiable."""
    loss = cross_entropy(model(image[None]), label[None])
    last = list(model.modules())[-1]
    gradients = torch.autograd.grad(loss, [last.weight, last.bias], create_graph=True)
    return torch.cat([gradient.reshape(-1) for gradient in gradients])


def fishr_penalty(model: nn.Module, data: Batches, decay: float, memory: Memory) -> Tensor:
    """Equation 4 of Rame et al. 2022, one image at a time, with DomainBed's moving average."""
    corrected, kept = [], []
    for domain, (x, y) in enumerate(data):
        rows = torch.stack([head_gradient(model, *pair) for pair in zip(x, y, strict=True)])
        variance = ((rows - rows.mean(0)) ** 2).mean(0)
        before = 0.0 if memory.averages is None else memory.averages[domain]
        average = decay * before + (1 - decay) * variance
        corrected.append(average / (1 - decay))
        kept.append(average.detach())
    memory.averages = kept
    mean = torch.stack(corrected).mean(0)
    return torch.stack([((v - mean) ** 2).mean() for v in corrected]).mean()


def feature_variance(model: nn.Sequential, data: Batches) -> Tensor:
    """The `ib_penalty` of DomainBed's `IB_ERM.update`: the mean of the domains' ones."""
    penalty = sum(z.var(dim=0).mean() for z in features(model, data))
    return penalty / len(data)


def sd(model: nn.Module, data: Batches, weight: float) -> Tensor:
    """DomainBed's `SD.update`, domain by domain."""
    losses = [cross_entropy(model(x), y) + weight * (model(x) ** 2).mean() for x, y in data]
    return torch.stack(losses).mean()


def kernel_quantile(values: Tensor, level: float) -> Tensor:
    """Algorithm 1 of Eastwood et al. 2022: SciPy's root q of F(q) = α, with the derivative that the

    equation has by autograd: that of a step of Newton's method, which at the root moves nothing.
    """
    shrinks = 1.06 * len(values) ** -0.2
    estimate = gaussian_kde(values.detach().numpy(), bw_method=shrinks)
    low, high = values.min().item() - 50, values.max().item() + 50
    root = brentq(lambda q: estimate.integrate_box_1d(-50, q) - level, low, high, xtol=1e-14)
    place = torch.tensor(root, dtype=values.dtype, requires_grad=True)
    total = Normal(values, shrinks * values.std()).cdf(place).mean()
    (density,) = torch.autograd.grad(total, place, retain_graph=True)
    return root - (total - total.detach()) / density


def features(model: nn.Sequential, data: Batches) -> list[Tensor]:
    return [model[:-1](x) for x, _ in data]


def coral_distance(x: Tensor, y: Tensor) -> Tensor:
    """DomainBed's `mmd` for `kernel_type` "mean_cov", component by component."""
    centred = [rows - rows.mean(0, keepdim=True) for rows in (x, y)]
    first, second = (rows.t() @ rows / (len(rows) - 1) for rows in centred)
    return (x.mean(0) - y.mean(0)).pow(2).mean() + (first - second).pow(2).mean()


def mmd_distance(x: Tensor, y: Tensor) -> Tensor:
    """The same for "gaussian", pair by pair of images."""

    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        squares = torch.stack([(p - q).pow(2).sum() for p in a for q in b])
        return sum(squares.mul(-s).exp().mean() for s in (0.001, 0.01, 0.1, 1, 10, 100, 1000))

    return mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)


def alignment_penalty(
    model: nn.Sequential, data: Batches, distance: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The mean over the D (D − 1) / 2 pairs of domains, as DomainBed's `AbstractMMD.update`."""
    pairs = list(combinations(features(model, data), 2))
    return sum(distance(x, y) for x, y in pairs) / len(pairs)


def mixup_losses(model: nn.Module, data: Batches, drawn: Drawn) -> list[Tensor]:
    losses = []
    for (i, j), share in zip(drawn.ring, drawn.shares, strict=True):
        logits = model(share * data[i][0] + (1 - share) * data[j][0])
        first, second = cross_entropy(logits, data[i][1]), cross_entropy(logits, data[j][1])
        losses.append(share * first + (1 - share) * second)
    return losses


def mldg_gradients(
    model: nn.Module,
    data: Batches,
    ring: list[tuple[int, int]],
    beta: float,
    make_optimizer: Callable[..., torch.optim.Optimizer] = sgd,
) -> list[Tensor]:
    """∇L_i(θ) + β ∇L_j(θ') per pair, with θ' in a network of its own."""
    gradients = []
    for i, j in ring:
        inner = copy.deepcopy(model)
        optimizer = make_optimizer(inner.parameters())
        cross_entropy(inner(data[i][0]), data[i][1]).backward()
        optimizer.step()
        outer = flat_gradient(risks(model, [data[i]])[0], model)
        gradients.append(outer + beta * flat_gradient(risks(inner, [data[j]])[0], inner))
    return gradients


def grad_norm_weights(
    model: nn.Module, data: Batches, alpha: float, rate: float, memory: Memory
) -> Tensor:
    """The weights of this step; afterwards `memory` has those of the next (algorithm 1)."""
    stacked = torch.stack(risks(model, data))
    last = list(model.modules())[-1].weight
    if memory.weights is None:
        memory.weights, memory.first = torch.ones(len(data)).double(), stacked.detach()
    before = memory.weights
    leaf = before.clone().requires_grad_()
    norms = torch.stack(
        [
            torch.autograd.grad(w * risk, last, create_graph=True)[0].norm()
            for w, risk in zip(leaf, stacked, strict=True)
        ]
    )
    ratios = stacked.detach() / memory.first
    target = norms.detach().mean() * (ratios / ratios.mean()) ** alpha
    (norms - target).abs().sum().backward(inputs=[leaf])
    moved = (before - rate * leaf.grad).clamp_min(1e-3)
    memory.weights = moved * len(data) / moved.sum()
    return before


def fish(model: nn.Module, data: Batches, order: list[int], meta_lr: float) -> Tensor:
    """θ + ε (θ̃ − θ) of algorithm 1 of Shi et al. 2022, for plain inner steps."""
    inner = copy.deepcopy(model)
    optimizer = sgd(inner.parameters())
    for domain in order:
        optimizer.zero_grad()
        risks(inner, [data[domain]])[0].backward()
        optimizer.step()
    start = flat_parameters(model)
    return start + meta_lr * (flat_parameters(inner) - start)
