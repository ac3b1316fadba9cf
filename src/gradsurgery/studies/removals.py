"""What a rule takes out of the sum of several gradients: one look in a study of tasks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from gradsurgery.backbones import Backbone
from gradsurgery.documents.tasks_vs_domains import LayerCosines, Measured, RuleEffect, TasksOptions
from gradsurgery.gradients.conflict import group_names
from gradsurgery.gradients.gradient_gram import layer_of
from gradsurgery.rules import Rule, build_rule
from gradsurgery.seeds import derive_seed, named_generator
from gradsurgery.studies.groupings import Groups
from gradsurgery.studies.measuring import mean_of_known


class Removal(NamedTuple):
    """Of the sum s = Σ g_d and a rule's update u.

    length: ‖u‖ / ‖s‖. cosine: of u and s. removed: ‖s − u‖ / ‖s‖. part: s − u itself.
    A ratio is None where s is zero, the cosine where u is.
    """

    length: float | None
    cosine: float | None
    removed: float | None
    part: Float[Tensor, " params"]


def removal(total: Float[Tensor, " params"], update: Float[Tensor, " params"]) -> Removal:
    """Compare a rule's update with the sum of the gradients.

    >>> found = removal(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0]))
    >>> round(found.length, 6), round(found.cosine, 6), found.removed, found.part.tolist()
    (0.6, 0.6, 0.8, [0.0, 4.0])
    """
    part = total - update
    whole, kept = (float(vector.double().norm()) for vector in (total, update))
    return Removal(
        kept / whole if whole else None,
        cosine(total, update),
        float(part.double().norm()) / whole if whole else None,
        part,
    )


def cosine(first: Float[Tensor, " params"], second: Float[Tensor, " params"]) -> float | None:
    """The cosine of two vectors in [-1, 1]; None where one is zero."""
    a, b = first.double(), second.double()
    lengths = float(a.norm() * b.norm())
    return max(-1.0, min(1.0, float(a @ b) / lengths)) if lengths else None


def group_gradients(
    losses: Sequence[Float[Tensor, ""]], parameters: Sequence[Tensor]
) -> Float[Tensor, "groups params"]:
    """The gradient of each loss by all parameters in a row; the losses' graph is kept."""
    rows = [
        torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
        for loss in losses
    ]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


def curvatures(
    loss: Float[Tensor, ""],
    parameters: Sequence[Tensor],
    directions: Sequence[Float[Tensor, " params"]],
) -> list[float | None]:
    """How the loss curves along each direction r: r·Hr / r·r, with one product Hr each.

    loss: with its graph. H is its Hessian by all of the parameters, and Hr the gradient of
        ∇L·r. None for a direction that is zero.

    >>> w = torch.tensor([1.0, 1.0], requires_grad=True)
    >>> curvatures(w[0] ** 2 + 3 * w[1] ** 2, [w], [torch.tensor([2.0, 0.0]), torch.ones(2)])
    [2.0, 4.0]
    """
    first = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    slope = torch.cat([part.flatten() for part in first])
    found: list[float | None] = []
    for direction in directions:
        square = float(direction.double() @ direction.double())
        if not square or not slope.requires_grad:
            found.append(0.0 if square else None)
            continue
        product = torch.autograd.grad(
            slope @ direction, parameters, retain_graph=True, materialize_grads=True
        )
        turned = torch.cat([part.flatten() for part in product])
        found.append(float(turned.double() @ direction.double()) / square)
    return found


class GroupCosines(NamedTuple):
    """Cosines of the gradients of D groups in K batches, from their inner products.

    within: of two batches of one group, a value a pair.
    across: of two groups in one batch, a value a pair.
    expected: E g_d · E g_e by E g_d · E g_d, both averaged over the groups; None where the batches'
        noise hides the gradients.
    """

    within: Float[Tensor, " pairs"]
    across: Float[Tensor, " others"]
    expected: float | None

    @property
    def negative(self) -> float | None:
        """The share of the pairs across groups with a negative cosine."""
        return float((self.across < 0).double().mean()) if len(self.across) else None


def group_cosines(gram: Float[Tensor, "batches groups batches groups"]) -> GroupCosines:
    """The cosines within and across groups.

    gram: the inner products g_ad · g_be of the gradients of group d in batch a and of group e in
        batch b, [K, D, K, D].

    With a ≠ b the noise of the two batches is independent, so that the mean of g_ad · g_be over
    them estimates E g_d · E g_e without bias, also for d = e. A pair with a zero gradient is left
    out.

    >>> rows = torch.tensor([[[1.0, 1.0], [1.0, 0.0]], [[1.0, -1.0], [1.0, 0.0]]])
    >>> found = group_cosines(torch.einsum("adp,bep->adbe", rows, rows))
    >>> found.within.tolist(), [round(x, 4) for x in found.across.tolist()], found.expected
    ([0.0, 1.0], [0.7071, 0.7071], 2.0)
    """
    batches, groups = gram.shape[:2]
    gram = gram.double()
    lengths = torch.einsum("adad->ad", gram).clamp(min=0).sqrt()
    cosines = gram / (lengths[:, :, None, None] * lengths)
    pairs = torch.triu_indices(batches, batches, offset=1)
    two = torch.triu_indices(groups, groups, offset=1)
    within = torch.einsum("adbd->dab", cosines)[:, pairs[0], pairs[1]].flatten()
    across = torch.einsum("adae->ade", cosines)[:, two[0], two[1]].flatten()
    apart = ~torch.eye(batches, dtype=torch.bool)
    products = gram.permute(0, 2, 1, 3)[apart].mean(0)  # [D, D], of different batches
    own = float(products.diagonal().mean())
    other = float(products[~torch.eye(groups, dtype=torch.bool)].mean())
    return GroupCosines(
        within[~within.isnan()], across[~across.isnan()], other / own if own > 0 else None
    )


Named = Sequence[tuple[str, Tensor]]


class Surgery:
    """A rule on the parameters that all groups share, the sum on the others, as one rule.

    rule: combines the gradients [groups, params].
    own: how many parameters, the last ones, belong to single groups.
    noise: a gradient g gets independent normal noise of the expected length noise · ‖g‖.
    generator: of the noise.
    """

    def __init__(self, rule: Rule, *, own: int, noise: float, generator: torch.Generator) -> None:
        self.rule, self.own, self.noise = rule, own, noise
        self._generator = generator

    def __call__(self, gradients: Float[Tensor, "groups params"]) -> Float[Tensor, " params"]:
        """The update."""
        gradients = self.noisy(gradients)
        shared = gradients.shape[1] - self.own
        update = self.rule(gradients[:, :shared].contiguous())
        return torch.cat([update, gradients[:, shared:].sum(0)])

    def noisy(self, gradients: Float[Tensor, "groups params"]) -> Float[Tensor, "groups params"]:
        """The gradients with their noise."""
        if not self.noise:
            return gradients
        draws = torch.randn(gradients.shape, generator=self._generator).to(gradients)
        scale = gradients.norm(dim=1, keepdim=True) * (self.noise / gradients.shape[1] ** 0.5)
        spoilt: Tensor = gradients + scale * draws
        return spoilt


def measure(
    backbone: Backbone,
    groups: Groups,
    named: Named,
    own: int,
    options: TasksOptions,
    *,
    step: int,
    by_layer: bool,
) -> Measured:
    """The groups' gradients in `options.repeats` batches, and what each rule makes of them.

    The model is in evaluation mode, and stays as it is. Curvature is that of the first batch.
    """
    parameters = [p for _, p in named]
    size = sum(p.numel() for p in parameters)
    shared = size - (0 if groups.one_task else own)
    seed = derive_seed(groups.seed, "measured")
    noise = Surgery(
        build_rule("sum", {}), own=0, noise=options.noise, generator=named_generator(seed, step)
    )
    rules = [name for name in options.rules if name != "sum"]
    removals: dict[str, list[Removal]] = {name: [] for name in rules}
    looks: list[Tensor] = []
    bends: list[float | None] = []
    for k in range(options.repeats):
        losses = list(groups.losses(backbone, groups.at(step * options.repeats + k, measured=True)))
        gradients = noise.noisy(group_gradients(losses, parameters))[:, :shared].contiguous()
        looks.append(gradients)
        total = gradients.sum(0)
        for name in rules:
            rule = build_rule(name, {}, named_generator(seed, name, step, k))
            removals[name].append(removal(total, rule(gradients)))
        if not bends:
            random = torch.randn(shared, generator=named_generator(seed, "direction", step))
            taken = [total, random.to(total), *(found[0].part for found in removals.values())]
            padded = [functional.pad(part, (0, size - shared)) for part in taken]
            bends = curvatures(torch.stack(losses).sum(), parameters, padded)
    rows = torch.stack(looks)
    whole, within, across = _cosines("shared", rows)
    return Measured(
        step=step,
        shared=whole,
        within_deciles=within,
        across_deciles=across,
        layers=_by_layer(backbone, named, rows) if by_layer else [],
        effects=[
            _effect(name, removals[name], bend) for name, bend in zip(rules, bends[2:], strict=True)
        ],
        curvature_sum=_rounded(bends[0]),
        curvature_random=_rounded(bends[1]),
    )


def _cosines(
    name: str, rows: Float[Tensor, "batches groups params"]
) -> tuple[LayerCosines, list[float], list[float]]:
    """The mean cosines, and the deciles within and across."""
    batches, groups, components = rows.shape
    flat = rows.flatten(0, 1).double()
    found = group_cosines((flat @ flat.T).view(batches, groups, batches, groups))
    layer = LayerCosines(
        name=name,
        components=components,
        within=_rounded(mean_of_known(found.within.tolist())),
        across=_rounded(mean_of_known(found.across.tolist())),
        expected=_rounded(found.expected),
        negative=_rounded(found.negative),
    )
    return layer, _deciles(found.within), _deciles(found.across)


def _by_layer(
    backbone: Backbone, named: Named, rows: Float[Tensor, "batches groups params"]
) -> list[LayerCosines]:
    """The cosines by groups of layers, of the parameters that `rows` has."""
    names = group_names(backbone.model)
    places: dict[str, list[Tensor]] = {}
    first = 0
    for name, parameter in named:
        span = torch.arange(first, first + parameter.numel())
        first += parameter.numel()
        if first <= rows.shape[2]:
            places.setdefault(names[layer_of(name, backbone.model)], []).append(span)
    return [_cosines(name, rows[:, :, torch.cat(spans)])[0] for name, spans in places.items()]


def _effect(name: str, removals: Sequence[Removal], curvature: float | None) -> RuleEffect:
    """The means over the batches."""
    pairs = [
        cosine(first.part, second.part)
        for place, first in enumerate(removals)
        for second in removals[:place]
    ]
    return RuleEffect(
        rule=name,
        length=_rounded(mean_of_known([r.length for r in removals])),
        cosine=_rounded(mean_of_known([r.cosine for r in removals])),
        removed=_rounded(mean_of_known([r.removed for r in removals])),
        alike=_rounded(mean_of_known(pairs)),
        curvature=_rounded(curvature),
    )


def _deciles(values: Float[Tensor, " pairs"]) -> list[float]:
    if not len(values):
        return []
    return [float(f"{value:.4g}") for value in np.quantile(values.numpy(), (0.1, 0.5, 0.9))]


def _rounded(value: float | None) -> float | None:
    """Four digits: the file is read by people, and a mean of few batches has no more."""
    return None if value is None else float(f"{value:.4g}")
