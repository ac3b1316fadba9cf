"""Several processes with the same model: a domain's gradient is the mean of what each has.

As in `DistributedDataParallel`, every process takes a part of each domain's images. The rule gets
the same D gradients in all of them, and so makes the same update; that it did is looked at.
"""

from collections import Counter
from collections.abc import Sequence
from zlib import crc32

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributed as group
from torch.distributed.tensor import DTensor
from typing_extensions import override

from gradsurgery.engine.accumulator import (
    Accumulator,
    Between,
    Update,
    flat_gradient,
    shaped_gradient,
)
from gradsurgery.errors import ArgumentError
from gradsurgery.kernels.network import wide_on

_ROUNDING = 1e-9
"""The part of a sum by which it may differ, since its order depends on the number of threads."""


class Exchanging(Between):
    """Hands on the means over the processes, and waits for the device once a domain.

    A parameter that is reached in one process has a gradient in all.
    """

    at_once = False

    def __init__(self, accumulator: Accumulator, parameters: Sequence[Tensor]) -> None:
        super().__init__(accumulator, parameters)
        self._unreached: Counter[int] = Counter()
        self._device = parameters[0].device
        kinds = [(p.dtype, tuple(p.shape), p.stride()) for p in parameters]
        self._layout = crc32(repr(kinds).encode()) % 2**20
        if any(isinstance(parameter, DTensor) for parameter in parameters):
            raise ArgumentError(
                "the parameters are split over the processes (DTensor), and a rule compares whole "
                "gradients; keep the model whole in each, as DistributedDataParallel does"
            )

    @override
    def receive(self, position: int, domain: int, gradient: Tensor | None) -> None:
        raise NotImplementedError("whole domains are received")

    @override
    def receive_domain(self, domain: int, gradients: Sequence[Tensor | None]) -> None:
        reached = [gradient is not None for gradient in gradients]
        if not self._meet(domain, ends=False, whole=all(reached)):
            there = torch.tensor(reached, dtype=torch.int32, device="cpu").to(self._device)
            group.all_reduce(there, group.ReduceOp.MAX)
            reached = [found > 0 for found in there.tolist()]
            self._unreached.update(at for at, found in enumerate(reached) if not found)
        means = mean_gradients(self._parameters, gradients, reached)
        self._accumulator.receive_domain(domain, means)

    @override
    def joint_losses(self, losses: Float[Tensor, " domains"]) -> Float[Tensor, " domains"]:
        self._meet(len(losses), ends=True, whole=True)
        means = losses.to(self._device, wide_on(self._device)) / group.get_world_size()
        group.all_reduce(means)
        return means.to(losses)

    @override
    def joint_unreached(self, unreached: Counter[int]) -> Counter[int]:
        return self._unreached

    @override
    def finish(self, domains: int, *, poison: bool) -> Update:
        update = super().finish(domains, poison=poison)
        check_alike(self._parameters, update.gradients)
        return update

    def _meet(self, domain: int, *, ends: bool, whole: bool) -> bool:
        """Whether `whole` in all processes: a domain reaches all parameters there.

        ends: after the last domain. Raises `ArgumentError` where the processes cannot go on
        together: with other parameters, at another domain, or where some have a further one.
        """
        told = [self._layout, domain, ends, whole]
        here = torch.tensor(told, dtype=wide_on(self._device), device="cpu").to(self._device)
        lowest, highest = (each.tolist() for each in extremes(here))
        if lowest[0] != highest[0]:
            raise _different_weights()
        if lowest[1] != highest[1]:
            raise ArgumentError(
                f"the {group.get_world_size()} processes of the group are at domain "
                f"{lowest[1]:.0f} and at domain {highest[1]:.0f} at the same time; where one "
                "leaves a step out, as after an exception, let all leave it out"
            )
        if lowest[2] != highest[2]:
            raise ArgumentError(
                f"the {group.get_world_size()} processes of the group have not as many domains: "
                f"some have {domain}, and others more; give the losses of the same domains in "
                "all, in one order"
            )
        return bool(lowest[3])


@torch.no_grad()
def mean_gradients(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], reached: Sequence[bool]
) -> list[Tensor | None]:
    """The means of one domain's gradients over the processes, in the memory of those given.

    reached: the parameters that have one in any process.
    """
    means: list[Tensor | None] = [None] * len(parameters)
    for dtype in dict.fromkeys(parameter.dtype for parameter in parameters):
        flats = {
            at: _flat(gradients[at], parameter)
            for at, parameter in enumerate(parameters)
            if reached[at] and parameter.dtype == dtype
        }
        if not flats:
            continue
        vector = torch.cat(list(flats.values())).div_(group.get_world_size())
        group.all_reduce(vector)
        torch._foreach_copy_(list(flats.values()), vector.split([len(f) for f in flats.values()]))
        for at, flat in flats.items():
            means[at] = shaped_gradient(flat, parameters[at])
    return means


def _flat(gradient: Tensor | None, parameter: Tensor) -> Float[Tensor, " params"]:
    if gradient is None:
        return parameter.new_zeros(parameter.numel())
    return flat_gradient(gradient, parameter)


@torch.no_grad()
def check_alike(parameters: Sequence[Tensor], update: Sequence[Tensor | None]) -> None:
    """Raise `ArgumentError` unless all processes hold the same weights and make the same update.

    Both are compared by the sizes of their components, summed up.
    """
    here = torch.stack([_size(tensors, parameters[0]) for tensors in (parameters, update)])
    # what is not finite in all differs from nothing
    lowest, highest = extremes(here.nan_to_num(-1.0, posinf=-1.0))
    of_weights, of_update = (highest - lowest > _ROUNDING * highest.abs()).tolist()
    if of_weights:
        raise _different_weights()
    if of_update:
        raise ArgumentError(
            f"the {group.get_world_size()} processes of the group make different updates of the "
            "same gradients; give each the same rule, and a random one a generator of its own with "
            "the same seed"
        )


def _different_weights() -> ArgumentError:
    return ArgumentError(
        f"the {group.get_world_size()} processes of the group hold different weights, or parts of "
        "them, or have or lay them out in other ways; let all begin with those of one, as "
        "DistributedDataParallel does, and take the same steps"
    )


def extremes(here: Float[Tensor, " figures"]) -> tuple[Tensor, Tensor]:
    """The lowest of each figure in the processes, and the highest."""
    both = torch.cat([-here, here])
    group.all_reduce(both, group.ReduceOp.MAX)
    negated, highest = both.chunk(2)
    return -negated, highest


def _size(tensors: Sequence[Tensor | None], like: Tensor) -> Float[Tensor, ""]:
    """The sum of the components' sizes, in which tensors that change places make a difference."""
    zero = like.new_zeros((), dtype=wide_on(like.device))
    sizes = [zero if t is None else t.abs().sum(dtype=zero.dtype) for t in tensors]
    places = torch.linspace(1, 2, len(sizes), dtype=zero.dtype, device=zero.device)
    return torch.stack(sizes) @ places
