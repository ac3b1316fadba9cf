"""One look at a network: where the domains' gradients conflict, over several batches."""

import math
from collections.abc import Mapping, Sequence
from math import fsum
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import CrossEntropyLoss

from gradsurgery.backbones import Backbone
from gradsurgery.data import DomainBatches, ImageSet, Split
from gradsurgery.documents.studies import DiagnosisOptions, GroupConflict, Numbers, Snapshot
from gradsurgery.gradients.conflict import Conflict, domain_conflict, group_names, sum_of
from gradsurgery.gradients.gradient_gram import grouped
from gradsurgery.seeds import derive_seed, random_order
from gradsurgery.studies.measuring import evaluating, labelled_images, mean_of_known

WHOLE_NETWORK = "whole network"


class Seen(NamedTuple):
    """The conflict in one batch of every domain, by group and in total, and that of chance."""

    groups: dict[str, Conflict]
    total: Conflict
    shuffled: Conflict


def diagnose_step(
    backbone: Backbone,
    images: ImageSet,
    split: Split,
    domains: Sequence[str],
    options: DiagnosisOptions,
    *,
    step: int = 0,
) -> Snapshot:
    """The conflict between `domains` in evaluation mode, over `options.repeats` training batches.

    The images depend on `options.seed` alone: two networks, and two steps, see the same ones.

    Raises `NonFiniteError` where a gradient is NaN or infinite.
    """
    batches = DomainBatches(
        images,
        split.train,
        domains=domains,
        batch_size=options.batch_size,
        seed=derive_seed(options.seed, "diagnosis"),
    )
    names = {} if options.by_layer else group_names(backbone.model)
    with evaluating(backbone.model):
        seen = [_seen(backbone, batches, k, names) for k in range(options.repeats)]
    return snapshot_of(seen, domains, step)


def snapshot_of(seen: Sequence[Seen], domains: Sequence[str], step: int) -> Snapshot:
    """The means over what was seen in each batch."""
    cosines = torch.stack([one.total.cosines_with_rest for one in seen])
    most = int(_low(cosines.nanmean(0)).argmin())
    shuffled = [one.shuffled for one in seen]
    return Snapshot(
        step=step,
        total=_averaged(WHOLE_NETWORK, [one.total for one in seen]),
        groups=[_averaged(name, [one.groups[name] for one in seen]) for name in seen[0].groups],
        most_conflicting=domains[most],
        times_most=int((_low(cosines).argmin(1) == most).sum()),
        stands_out=_stands_out(cosines, torch.stack([c.cosines_with_rest for c in shuffled])),
        shuffled_agreeing=mean_of_known([conflict.agreement for conflict in shuffled]),
        shuffled_cosine=mean_of_known([_mean_cosine(conflict) for conflict in shuffled]),
    )


def _seen(
    backbone: Backbone, batches: DomainBatches, position: int, names: Mapping[str, str]
) -> Seen:
    chosen = batches.indices_at(position)
    loaded = [labelled_images(backbone, batches.images, indices) for indices in chosen]
    loss = CrossEntropyLoss()
    layers = domain_conflict(backbone.model, loss, loaded)
    shuffled = domain_conflict(backbone.model, loss, _dealt(loaded, batches.seed, position))
    return Seen(
        grouped(layers, lambda layer: names.get(layer, layer)), sum_of(layers), sum_of(shuffled)
    )


def _dealt(
    batches: list[tuple[Tensor, Tensor]], seed: int, position: int
) -> list[tuple[Tensor, Tensor]]:
    """The same images, dealt out to as many batches at random."""
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    order = torch.from_numpy(random_order(len(x), seed, "shuffled", position)).to(x.device)
    return [(x[part], y[part]) for part in order.chunk(len(batches))]


def _averaged(name: str, conflicts: list[Conflict]) -> GroupConflict:
    return GroupConflict(
        name=name,
        components=conflicts[0].components,
        moving=fsum(c.moving for c in conflicts) / max(fsum(c.components for c in conflicts), 1),
        agreeing=mean_of_known([c.agreement for c in conflicts]),
        against_rest=_means([(c.against_rest / c.moving).tolist() for c in conflicts]),
        cosines=[
            _means(rows) for rows in zip(*(c.cosines.tolist() for c in conflicts), strict=True)
        ],
        cosine_with_rest=_means([c.cosines_with_rest.tolist() for c in conflicts]),
        kept_length=mean_of_known([c.kept_length for c in conflicts]),
    )


def _means(rows: Sequence[list[float]]) -> Numbers:
    """Column by column."""
    return [mean_of_known(column) for column in zip(*rows, strict=True)]


def _mean_cosine(conflict: Conflict) -> float:
    rows, columns = torch.triu_indices(len(conflict.gram), len(conflict.gram), offset=1)
    return float(conflict.cosines[rows, columns].nanmean())


def _low(cosines: Float[Tensor, "*batches domains"]) -> Float[Tensor, "*batches domains"]:
    """The cosines, infinite where a domain has no direction: it is not the lowest."""
    return cosines.nan_to_num(nan=torch.inf)


def _stands_out(
    cosines: Float[Tensor, "batches domains"], shuffled: Float[Tensor, "batches domains"]
) -> bool:
    """Whether the lowest of the domains' mean cosines is below all others by more than chance.

    cosines: of each domain's gradient with the sum of the others'.
    shuffled: the same where the images are dealt out to the domains at random.

    The difference between the lowest and the next is measured by how much the domains differ from
    batch to batch, and by how much they do where there are none (Student's t, one-sided at 5 %, by
    Bonferroni's rule over the domains).
    """
    from scipy.special import stdtrit

    batches, domains = cosines.shape
    if domains < 3 or not cosines.isfinite().all() or not shuffled.isfinite().all():
        return False  # two domains have the same cosine with each other
    lowest, following = cosines.mean(0).sort().values[:2].tolist()
    noises = [shuffled - shuffled.mean(1, keepdim=True)]
    freedoms = [batches * (domains - 1)]
    if batches > 1:
        apart = cosines - cosines.mean(1, keepdim=True)
        noises.append(apart - apart.mean(0))
        freedoms.append((batches - 1) * (domains - 1))
    errors = [
        math.sqrt(2 / batches * float(noise.square().sum()) / freedom)
        for noise, freedom in zip(noises, freedoms, strict=True)
    ]
    return all(
        following - lowest > error * -stdtrit(freedom, 0.05 / domains)
        for error, freedom in zip(errors, freedoms, strict=True)
    )
