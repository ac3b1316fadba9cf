"""One look at a network in a study of tasks against domains: what every rule takes away."""

from collections.abc import Sequence
from math import fsum

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from gradsurgery.backbones import Backbone
from gradsurgery.documents.tasks_vs_domains import LayerCosines, Measured, RuleEffect, TasksOptions
from gradsurgery.gradients.conflict import group_names
from gradsurgery.gradients.gradient_gram import layer_of
from gradsurgery.gradients.removal import (
    Removal,
    cosine,
    curvatures,
    group_cosines,
    group_gradients,
    removal,
)
from gradsurgery.rules import Rule, build_rule
from gradsurgery.seeds import derive_seed, named_generator
from gradsurgery.studies.groupings import Groups

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
        within=_rounded(_mean(found.within.tolist())),
        across=_rounded(_mean(found.across.tolist())),
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
        length=_rounded(_mean([r.length for r in removals])),
        cosine=_rounded(_mean([r.cosine for r in removals])),
        removed=_rounded(_mean([r.removed for r in removals])),
        alike=_rounded(_mean(pairs)),
        curvature=_rounded(curvature),
    )


def _deciles(values: Float[Tensor, " pairs"]) -> list[float]:
    if not len(values):
        return []
    return [float(f"{value:.4g}") for value in np.quantile(values.numpy(), (0.1, 0.5, 0.9))]


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return fsum(found) / len(found) if found else None


def _rounded(value: float | None) -> float | None:
    """Four digits: the file is read by people, and a mean of few batches has no more."""
    return None if value is None else float(f"{value:.4g}")
