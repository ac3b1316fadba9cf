"""Whether what a pass gives as the samples' gradients is theirs.

The rows of a tapped call's output are taken to be the samples', one sample's after the other's.
Where they are, row r of sample i has the gradient b_r of Σ_j ℓ_j from ℓ_i alone, and w_i b_r in a
backward pass of Σ_j w_j ℓ_j. Where row r has a part β_j from another sample too, it has
b_r + Σ_j (w_j − w_i) β_j / w_i, which is another one for all but very few weights.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, reduce
from typing import NamedTuple, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gradsurgery.errors import ArgumentError
from gradsurgery.gradients.layers import Gram, LayerCall, gram_in_spans, wide
from gradsurgery.gradients.recorder import Recorder, Tap
from gradsurgery.rules.gramian import full_precision

_ROUNDING = 64
"""Rows are verified up to so many units in the last place.

On a processor they are the same bit for bit, since the weights are powers of two; accelerators
sum in an order that changes from pass to pass.
"""


class Passes(NamedTuple):
    """What the backward passes of N losses have shown.

    grams: G by parameter, where they give its gradients by sample.
    refused: the parameters where they do not.
    apart: whether each sample influences its own loss alone, as far as gradients show.
    at_taps: of every tap the projections of the compared samples' gradients.
    """

    grams: dict[Tensor, Gram]
    refused: set[Tensor]
    apart: bool
    at_taps: dict[Tap, Float[Tensor, "compared 4"]]


def verified_backward(
    recorder: Recorder,
    losses: Float[Tensor, " samples"],
    left: Iterable[Tensor],
    compared: Sequence[int],
) -> Passes:
    """Propagate the losses back as they are; and weighted before, unless the graph tells enough.

    left: parameters that are refused from the beginning.
    compared: the samples whose gradients at the taps are to be compared with those of other passes.
    """
    count = len(losses)
    known = recorder.keeps_apart(losses)
    looked_at = compared if known else range(count)
    weighted: list[dict[Tap | None, Tensor]] = []
    for weights in [] if known else _weights(count, narrow=torch.float16 in recorder.dtypes):
        found = projected_backward(recorder, losses, looked_at, weights=weights.to(losses.device))
        weighted.append(found)
    grams = _Grams(recorder.uses, left, count)
    agreed: dict[Tap | None, bool] = {}

    def receive(tap: Tap | None, gradient: Tensor, plain: Tensor) -> None:
        agreed[tap] = all(_agree(found.get(tap), plain) for found in weighted)
        if tap is not None:
            grams.receive(tap, gradient, verified=agreed[tap])

    plain = projected_backward(recorder, losses, looked_at, receive, to_samples=not known)
    grams.complete()
    rows = slice(None) if known else list(compared)
    at_taps = {tap: plain[tap][rows] for tap in recorder.taps}
    return Passes(grams.found, grams.refused | recorder.hidden, agreed.get(None, True), at_taps)


def projected_backward(
    recorder: Recorder,
    losses: Float[Tensor, " samples"],
    looked_at: Sequence[int],
    receive: Callable[[Tap | None, Tensor, Tensor], None] = lambda *_: None,
    *,
    weights: Float[Tensor, " samples"] | None = None,
    to_samples: bool = True,
) -> dict[Tap | None, Float[Tensor, "looked_at 4"]]:
    """One backward pass, and random projections of some samples' gradients at each tap.

    receive: called with a tap, the gradient there and its projections.
    weights: of the losses, by which the projections are divided again; and the graph is kept.
    to_samples: whether to go back to the samples too, which stand for a tap None.
    """
    zeros = losses.new_zeros(len(looked_at), 4, dtype=wide(losses.dtype))
    projections: dict[Tap | None, Tensor] = dict.fromkeys(recorder.taps, zeros)

    def project(tap: Tap | None, gradient: Tensor) -> None:
        found = _projected(gradient, len(losses), looked_at)
        projections[tap] = found if weights is None else found / weights[:, None]
        receive(tap, gradient, projections[tap])

    if losses.requires_grad:
        recorder.go_back(losses, project, weights=weights, to_samples=to_samples)
    return projections


class _Piece(NamedTuple):
    """A parameter's part in one call of a layer, and the gradient of the layer's output."""

    call: LayerCall
    role: str
    gradient: Tensor


class _Grams:
    """G by parameter, from the pieces of each as soon as all are there.

    uses: how many pieces a parameter has. refused: parameters whose pieces are left out.
    """

    def __init__(self, uses: Mapping[Tensor, int], refused: Iterable[Tensor], samples: int) -> None:
        self.found: dict[Tensor, Gram] = {}
        self.refused = set(refused)
        self._uses = uses
        self._samples = samples
        self._pieces: dict[Tensor, list[_Piece]] = {}

    def receive(self, tap: Tap, gradient: Tensor, *, verified: bool) -> None:
        call, tap.call = tap.call, None  # the layer's input is no longer needed
        if call is None:
            return
        for role, parameter in call.parameters.items():
            if not verified:
                self.refused.add(parameter)
            if parameter in self.refused:
                self._pieces.pop(parameter, None)
                continue
            pieces = self._pieces.setdefault(parameter, [])
            pieces.append(_Piece(call, role, gradient))
            if len(pieces) == self._uses[parameter]:
                self._add(parameter)

    def complete(self) -> None:
        """Add parameters some of whose uses the losses do not reach."""
        for parameter in list(self._pieces):
            self._add(parameter)

    def _add(self, parameter: Tensor) -> None:
        pieces, samples = self._pieces.pop(parameter), self._samples
        if len(pieces) == 1:
            (piece,) = pieces
            self.found[parameter] = piece.call.gram(piece.role, piece.gradient, samples)
            return

        def rows(span: slice) -> Tensor:
            parts = (piece.call.rows(piece.role, piece.gradient, samples, span) for piece in pieces)
            return reduce(torch.add, parts)

        step = max(piece.call.step for piece in pieces)
        self.found[parameter] = gram_in_spans(parameter.shape, samples, rows, step=step)


def _projected(gradient: Tensor, samples: int, wanted: Sequence[int]) -> Float[Tensor, "wanted 4"]:
    """Random projections of some samples' parts of a gradient, its length kept."""
    apart = gradient.unflatten(0, (samples, -1))
    if len(wanted) < samples:
        apart = apart[list(wanted)]
    rows = apart.to(wide(gradient.dtype)).flatten(1)
    directions = _directions(_WIDTH, rows.device, rows.dtype)
    whole = rows.shape[1] // _WIDTH
    # the pieces of a row share directions, and differ by a factor
    factors = _directions(1 << whole.bit_length(), rows.device, rows.dtype)[:whole]
    with full_precision():
        pieces = rows[:, : whole * _WIDTH].unflatten(1, (whole, _WIDTH)) @ directions
        rest = rows[:, whole * _WIDTH :]
        total: Tensor = (pieces * factors).sum(1) + rest @ directions[: rest.shape[1]]
    return total


_WIDTH = 1024


@cache
def _directions(count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return (torch.randn(count, 4, generator=generator, device="cpu") / 2).to(device, dtype)


def _weights(samples: int, *, narrow: bool) -> list[Float[Tensor, " samples"]]:
    """Weights of weighted passes: in no two samples are they the same in all passes.

    They are powers of two, so that multiplying by them rounds nothing.

    narrow: whether float16, with its few exponents, is in the pass.
    """
    span = 4 if narrow else 32
    powers = torch.exp2(torch.arange(-span, span, dtype=torch.float32, device="cpu"))
    values = torch.cat([powers, -powers])
    generator = torch.Generator().manual_seed(0)
    values = values[torch.randperm(len(values), generator=generator, device="cpu")]
    rounds = 0
    while len(values) ** rounds < samples:
        rounds += 1
    numbers = torch.arange(samples, device="cpu")
    return [values[numbers // len(values) ** at % len(values)] for at in range(rounds)]


def _agree(weighted: Tensor | None, plain: Tensor) -> bool:
    """Whether in a weighted pass the samples' rows had their weight times what they have."""
    if weighted is None:
        return False
    bound = _ROUNDING * torch.finfo(plain.dtype).eps * plain.norm(dim=1)
    wrong = ~plain.isfinite().all(1)  # raises its own error later
    return bool((((weighted - plain).norm(dim=1) <= bound) | wrong).all())


def are_near(found: Tensor, expected: Tensor, scale: Tensor, precision: float) -> bool:
    """Whether two numbers, or rows, differ by no more than rounding of the largest in `scale`."""
    difference, largest = (found.detach() - expected).abs().max(), scale.abs().max()
    # what is NaN or infinite raises an error of its own later
    return bool(difference <= precision * largest) or not bool(scale.isfinite().all())


def refuse_mixed(model: nn.Module) -> NoReturn:
    """Raise the `ArgumentError` for samples that have no gradient of their own."""
    raise ArgumentError(
        f"the samples see each other on their way through {type(model).__name__} or the loss, so "
        "that none has a gradient of its own; take the layer that compares samples out, or call "
        "model.eval()"
    )


def is_opaque(model: nn.Module) -> bool:
    """Whether something in the model runs unseen: compiled code, or hooks on gradients."""
    return any(
        isinstance(layer, torch.jit.ScriptModule)
        or layer._backward_hooks
        or layer._backward_pre_hooks
        for layer in model.modules()
    )


def check_samples_apart(model: nn.Module) -> None:
    """Raise `ArgumentError` where a layer normalises by the statistics of its batch.

    The gradient of one sample does not exist there: its loss depends on every other sample.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
            kept = "is in training mode" if layer.training else "keeps no running statistics"
            raise ArgumentError(
                f"the batch normalisation {name or type(layer).__name__} {kept}, so that samples "
                "have no gradient of their own; build it with track_running_stats=True and call "
                'model.eval(), or gradsurgery.backbones.set_training_mode(model, "frozen")'
            )
