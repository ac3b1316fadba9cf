"""Whether what a pass gives as the samples' gradients is theirs.

The rows of a tapped call's output are taken to be the samples', one sample's after the other's.
Where they are, row r of sample i has the gradient b_r of Σ_j ℓ_j from ℓ_i alone, and w_i b_r in a
backward pass of Σ_j w_j ℓ_j. Where row r has a part β_j from another sample too, it has
b_r + Σ_j (w_j − w_i) β_j / w_i, which is another one for all but very few weights.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import NamedTuple, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gradsurgery.errors import ArgumentError
from gradsurgery.gradients.layers import LayerCall, wide
from gradsurgery.gradients.recorder import Recorder, Tap
from gradsurgery.rules.gramian import full_precision

_ROUNDING = 64
"""Rows are verified up to so many units in the last place.

On a processor they are the same bit for bit, since the weights are powers of two; accelerators
sum in an order that changes from pass to pass.
"""


class Piece(NamedTuple):
    """A parameter's part in one call of a layer, and the gradient of the layer's output."""

    call: LayerCall
    role: str
    gradient: Tensor


Receiver = Callable[[Tensor, list[Piece]], None]


def verified_backward(
    recorder: Recorder,
    losses: Float[Tensor, " samples"],
    receiver: Receiver,
    left: Iterable[Tensor],
    compared: Sequence[int],
) -> tuple[list[Tensor], bool]:
    """Propagate the losses back as they are; and weighted before, unless the graph tells enough.

    receiver: called with a parameter and its pieces as soon as they are complete and verified,
        during the last pass; nothing of them is kept afterwards.
    left: parameters that are not to be handed out.
    compared: the samples whose rows at each tap are to be compared with those of other passes.

    Returns the parameters whose gradients by sample the passes do not give; and whether each sample
    influences its own loss alone, as far as gradients show.
    """
    count = len(losses)
    known = recorder.keeps_apart(losses)
    project = _Projection(count, compared if known else range(count))
    weights_of_passes = [] if known else _weights(count, narrow=recorder.is_narrow)
    rounds = [one.to(losses.device) for one in weights_of_passes]
    pieces = _Pieces(recorder, receiver, left)
    of_samples: list[Tensor] = []
    for weights in rounds:

        def receive_weighted(tap: Tap, gradient: Tensor, weights: Tensor = weights) -> None:
            tap.weighted.append(project(gradient) / weights[:, None])

        found = recorder.go_back(
            losses, weights, receive_weighted, keep_graph=True, to_samples=True
        )
        if found is not None:
            of_samples.append(project(found) / weights[:, None])

    def receive_plain(tap: Tap, gradient: Tensor) -> None:
        plain = project(gradient)
        verified = known or _agree(tap.weighted, plain, len(rounds))
        tap.plain = plain if known else plain[list(compared)]
        pieces.receive(tap, gradient, verified=verified)

    found = recorder.go_back(
        losses, torch.ones_like(losses), receive_plain, keep_graph=False, to_samples=not known
    )
    pieces.hand_out_rest()
    apart = found is None or _agree(of_samples, project(found), len(rounds))
    return pieces.refused(), apart


class _Pieces:
    """The pieces of each parameter, until all are there."""

    def __init__(self, recorder: Recorder, receiver: Receiver, left: Iterable[Tensor]) -> None:
        self._recorder = recorder
        self._receiver = receiver
        self._refused = {id(parameter) for parameter in left}
        self._pieces: dict[int, list[Piece]] = {}

    def receive(self, tap: Tap, gradient: Tensor, *, verified: bool) -> None:
        call, tap.call = tap.call, None  # the layer's input is no longer needed
        if call is None:
            return
        for role, parameter in call.parameters.items():
            key = id(parameter)
            if not verified:
                self._refused.add(key)
            if key in self._refused:
                self._pieces.pop(key, None)
                continue
            self._pieces.setdefault(key, []).append(Piece(call, role, gradient))
            if len(self._pieces[key]) == self._recorder.uses[key]:
                self._receiver(parameter, self._pieces.pop(key))

    def hand_out_rest(self) -> None:
        """Of parameters some of whose uses the losses do not reach."""
        for key in list(self._pieces):
            self._receiver(self._recorder.parameters[key], self._pieces.pop(key))

    def refused(self) -> list[Tensor]:
        parameters = self._recorder.parameters
        return [parameter for key, parameter in parameters.items() if key in self._refused]


class _Projection:
    """Random projections of some samples' parts of a gradient: [wanted, 4], its length kept."""

    def __init__(self, samples: int, wanted: Sequence[int]) -> None:
        self._samples = samples
        self._wanted = wanted

    def __call__(self, gradient: Tensor) -> Float[Tensor, "wanted 4"]:
        apart = gradient.unflatten(0, (self._samples, -1))
        if len(self._wanted) < self._samples:
            apart = apart[list(self._wanted)]
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
    return (torch.randn(count, 4, generator=generator) / 2).to(device, dtype)


def _weights(samples: int, *, narrow: bool) -> list[Float[Tensor, " samples"]]:
    """Weights of weighted passes: in no two samples are they the same in all passes.

    They are powers of two, so that multiplying by them rounds nothing.

    narrow: whether float16, with its few exponents, is in the pass.
    """
    span = 4 if narrow else 32
    powers = torch.exp2(torch.arange(-span, span, dtype=torch.float32))
    values = torch.cat([powers, -powers])
    values = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0))]
    rounds = 0
    while len(values) ** rounds < samples:
        rounds += 1
    numbers = torch.arange(samples)
    return [values[numbers // len(values) ** at % len(values)] for at in range(rounds)]


def _agree(weighted: Sequence[Tensor], plain: Tensor, rounds: int) -> bool:
    """Whether in each weighted pass the samples' rows had their weight times what they have."""
    if len(weighted) != rounds:
        return False
    bound = _ROUNDING * torch.finfo(plain.dtype).eps * plain.norm(dim=1)
    wrong = ~plain.isfinite().all(1)  # raises its own error later
    return all(bool((((one - plain).norm(dim=1) <= bound) | wrong).all()) for one in weighted)


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
