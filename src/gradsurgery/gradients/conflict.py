"""Where the gradients of domains conflict, by layer and by group of layers."""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from gradsurgery.algorithms.forward import NormalizedRows
from gradsurgery.engine.parameters import trainable_parameters
from gradsurgery.engine.passes import checked_loss
from gradsurgery.errors import ArgumentError, NonFiniteError
from gradsurgery.gradients.gradient_gram import block_of, grouped, layer_of
from gradsurgery.gradients.model_state import unchanged
from gradsurgery.gradients.one_by_one import (
    SampleLoss,
    called_loss,
    check_model_and_loss,
    failures_as,
    whole_gradients,
)

_PIECE = 1 << 18  # numbers at a time, so that the temporaries stay in the cache
_LEAST, _MOST = 1 << 11, 1 << 15  # components
_CANCELS = 1e-12  # of the squares' sum: a sum's square below it is rounding and nothing else


@dataclass(frozen=True)
class Conflict:
    """Counts and sums over components n of the gradients g_1, …, g_D; they add up over layers.

    components: how many there are.
    moving: components in which any domain's gradient is not zero. Only these say something about
        the domains, and the fractions are of these.
    agreeing: of the moving ones, those with Φ_n = 1: every sign is the same (equation 2).
    against_rest: per domain d, those with sign(g_dn) ≠ sign(Σ_{e≠d} g_en): the update of the other
        domains goes another way.
    differing: per pair, those with sign(g_dn) ≠ sign(g_en).
    scale: a power of two near the largest component, 0 where all are zero. Components of 1e-200
        and 1e200, whose squares no float has, are as good as others.
    scaled_gram: G_de / scale², with G_de = g_d · g_e.
    scaled_kept: ‖g*‖² / scale² for the update g* of Agr-Sum (equation 3).
    """

    components: int
    moving: int
    agreeing: int
    against_rest: Int64[Tensor, " domains"]
    differing: Int64[Tensor, "domains domains"]
    scale: float
    scaled_gram: Float[Tensor, "domains domains"]
    scaled_kept: float

    def __add__(self, other: "Conflict") -> "Conflict":
        """The conflict of both layers' components together."""
        scale = max(self.scale, other.scale)
        own, others = (part.scale / scale if scale else 0.0 for part in (self, other))
        return Conflict(
            self.components + other.components,
            self.moving + other.moving,
            self.agreeing + other.agreeing,
            self.against_rest + other.against_rest,
            self.differing + other.differing,
            scale,
            self.scaled_gram * own**2 + other.scaled_gram * others**2,
            self.scaled_kept * own**2 + other.scaled_kept * others**2,
        )

    @property
    def gram(self) -> Float[Tensor, "domains domains"]:
        """G_de = g_d · g_e."""
        return self.scaled_gram * self.scale * self.scale

    @property
    def kept(self) -> float:
        """‖g*‖² for the update g* of Agr-Sum (equation 3)."""
        return self.scaled_kept * self.scale * self.scale

    @property
    def agreement(self) -> float | None:
        """The fraction of the moving components that agree; None where nothing moves."""
        return self.agreeing / self.moving if self.moving else None

    @property
    def cosines(self) -> Float[Tensor, "domains domains"]:
        """cos_de = G_de / √(G_dd G_ee), NaN where a gradient is zero."""
        norms = self.scaled_gram.diagonal().sqrt()
        return (self.scaled_gram / (norms[:, None] * norms)).clamp(-1, 1)

    @property
    def cosines_with_rest(self) -> Float[Tensor, " domains"]:
        """Cosine of g_d with Σ_{e≠d} g_e, NaN where either is zero or the sum cancels."""
        own, row = self.scaled_gram.diagonal(), self.scaled_gram.sum(1)
        rest = self.scaled_gram.sum() - 2 * row + own
        rest = rest.where(rest > _CANCELS * (own.sum() - own), torch.nan)
        return ((row - own) / (own * rest).sqrt()).clamp(-1, 1)

    @property
    def kept_length(self) -> float | None:
        """‖g*‖ / ‖Σ_d g_d‖, how much of the sum's length Agr-Sum leaves; None for a zero sum."""
        whole = float(self.scaled_gram.sum())
        if whole <= _CANCELS * float(self.scaled_gram.diagonal().sum()):  # or there is none
            return None
        return min(1.0, math.sqrt(self.scaled_kept / whole))


def conflict_of(gradients: Float[Tensor, "domains params"]) -> Conflict:
    """The conflict between the rows, the gradients of D ≥ 2 domains.

    >>> found = conflict_of(torch.tensor([[1.0, -2.0, 0.0], [3.0, 4.0, 0.0]]))
    >>> found.moving, found.agreeing, found.against_rest.tolist(), found.kept
    (2, 1, [1, 1], 16.0)
    """
    count = len(gradients)
    if count < 2:
        raise ArgumentError(f"a conflict is between 2 domains or more, found {count}")
    gradients = gradients.detach()  # torch has zeros for what is unreached require gradients
    largest = float(gradients.abs().max()) if gradients.numel() else 0.0
    scale = 2.0 ** (math.frexp(largest)[1] - 1) if largest else 0.0
    moving = agreeing = 0
    kept = 0.0
    gram, both_move, balance = torch.zeros(
        3, count, count, dtype=torch.float64, device=gradients.device
    )
    against_rest = torch.zeros(count, dtype=torch.int64, device=gradients.device)
    for piece in gradients.split(min(_MOST, max(_PIECE // count, _LEAST)), dim=1):
        signs = piece.sign().to(torch.int8)
        lowest, highest = signs.amin(0), signs.amax(0)
        same = lowest == highest
        moves = same.logical_not() | (highest != 0)
        moving += int(moves.sum())
        agreeing += int((same & moves).sum())
        scaled = piece.double() / (scale or 1.0)
        gram += scaled @ scaled.T
        kept += float((scaled.sum(0) * same).square().sum())
        against_rest += (_rest(scaled).sign() != signs).sum(1)
        signs = signs.float()  # whose sums of so few ones are exact
        with torch.autocast(signs.device.type, enabled=False):
            both_move += signs.abs() @ signs.abs().T
            balance += signs @ signs.T  # pairs of equal signs, less those of opposite ones
    # a pair differs where one alone moves, and where both do with opposite signs
    own = both_move.diagonal()
    differing = (own[:, None] + own - 2 * both_move) + (both_move - balance) / 2
    return Conflict(
        components=gradients.shape[1],
        moving=moving,
        agreeing=agreeing,
        against_rest=against_rest.cpu(),
        differing=differing.long().cpu(),
        scale=scale,
        scaled_gram=gram.cpu(),
        scaled_kept=kept,
    )


def _rest(rows: Float[Tensor, "domains params"]) -> Float[Tensor, "domains params"]:
    """Σ_{e≠d} of the rows for every d: of those before it and of those behind it, so that nothing
    that was added is taken away again.
    """
    found, before, behind = torch.zeros_like(rows), torch.zeros_like(rows[0]), rows[-1].clone()
    for d in range(1, len(rows)):
        before += rows[d - 1]
        found[d] = before
    for d in range(len(rows) - 2, -1, -1):
        found[d] += behind
        behind += rows[d]
    return found


@torch.enable_grad()
def domain_conflict(
    model: nn.Module, loss: SampleLoss, batches: Iterable[Any]
) -> dict[str, Conflict]:
    """The conflict between the domains' gradients ∇L_d, by layer.

    model: used in the mode it is in; frozen parameters do not count.
    loss: `loss(model(x), y)` is the mean loss L_d of a batch, e.g. `torch.nn.CrossEntropyLoss()`.
    batches: one (x, y) per domain, two or more.

    Returns the conflict over the parameters that a layer owns itself, by the layer's name, in the
    order of the model; a parameter that several layers share counts for the first. The sum over the
    layers, `sum_of`, is the whole network's.

    Afterwards nothing of the model is different, as with `gradient_gram`; every domain's pass
    starts from the same state, and dropout goes on drawing. Memory: the gradients of all domains.

    Raises `ArgumentError` where nothing is trained, there is one domain, a batch is no pair or
    empty, or a loss is no scalar that depends on the parameters; `NonFiniteError` naming domain and
    parameter.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> x, pull = torch.eye(2)[:1], lambda output, sign: (output * sign).mean()
    >>> sum_of(domain_conflict(model, pull, [(x, 1.0), (x, -1.0)])).cosines
    tensor([[ 1., -1.],
            [-1.,  1.]], dtype=torch.float64)
    """
    check_model_and_loss(model, loss)
    if not isinstance(batches, Iterable) or isinstance(batches, Tensor):
        raise ArgumentError(
            f"batches are one pair (x, y) per domain, found a {type(batches).__name__}; give a list"
        )
    batches = list(batches)
    if len(batches) < 2:
        raise ArgumentError(f"a conflict is between 2 domains or more, found {len(batches)}")
    named = trainable_parameters(model.named_parameters())
    rows = []
    with unchanged(model, loss) as state, NormalizedRows():
        for domain, batch in enumerate(batches):
            x, y = _checked_pair(batch, domain)
            state.restore(random=False)
            with failures_as(f"{type(model).__name__} does not run on domain {domain}'s batch"):
                output = model(x)
            value = called_loss(loss, output, y, f"of domain {domain}")
            rows.append(_gradients(value, domain, [p for _, p in named]))
    found = {}
    for name, *gradients in zip((name for name, _ in named), *rows, strict=True):
        _check_finite(name, gradients)
        found[name] = conflict_of(torch.stack([gradient.flatten() for gradient in gradients]))
    return grouped(found, lambda name: layer_of(name, model))


def _checked_pair(batch: Any, domain: int) -> tuple[Any, Any]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        raise ArgumentError(
            f"the batch of domain {domain} is a pair (x, y), found {type(batch).__name__}{size}; "
            "give one pair per domain"
        )
    x, y = batch
    if isinstance(x, Tensor) and x.ndim and not len(x):
        raise ArgumentError(f"the batch of domain {domain} holds no sample; give at least one")
    return x, y


def _gradients(loss: Any, domain: int, parameters: Sequence[Tensor]) -> list[Tensor]:
    checked = checked_loss(loss, domain)
    return whole_gradients(checked.sum(), parameters, f"of domain {domain}")


def sum_of(layers: Mapping[str, Conflict]) -> Conflict:
    """The conflict over the components of all `layers`."""
    return reduce(operator.add, layers.values())


def _check_finite(name: str, gradients: list[Tensor]) -> None:
    for domain, gradient in enumerate(gradients):
        if not gradient.isfinite().all():
            raise NonFiniteError(
                f"the gradient of domain {domain} at parameter {name} is NaN or infinite; look at "
                "that domain's images and the weights",
                domain=domain,
                parameter=name,
            )


def group_names(model: nn.Module) -> dict[str, str]:
    """The group of each layer that owns parameters, from the input to the output.

    A group is a block (`block_of`), together with the normalisation after it: blocks with no
    parameter of two dimensions or more join the block before them, or after where they come first.

    >>> group_names(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2)))
    {'0': '0, 1', '1': '0, 1', '2': '2'}
    """
    blocks: dict[str, list[str]] = {}
    wide: set[str] = set()
    for name, parameter in model.named_parameters():
        layer = layer_of(name, model)
        block = block_of(layer)
        blocks.setdefault(block, [])
        if layer not in blocks[block]:
            blocks[block].append(layer)
        if parameter.ndim > 1:
            wide.add(block)
    joined: list[list[str]] = []
    for block in blocks:
        if joined and (block not in wide or not wide.intersection(joined[-1])):
            joined[-1].append(block)
        else:
            joined.append([block])
    return {
        layer: ", ".join(group) for group in joined for block in group for layer in blocks[block]
    }
