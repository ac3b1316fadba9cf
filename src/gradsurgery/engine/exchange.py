"""Several processes with the same model: a domain's gradient is the mean of what each has.

As in `DistributedDataParallel`, every process takes a part of each domain's images. The rule gets
the same D gradients in all of them, and so makes the same update; that it did is looked at.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributed as group
from torch.distributed.tensor import DTensor
from typing_extensions import override

from gradsurgery.engine.accumulator import Accumulator, Update, flat_gradient, shaped_gradient
from gradsurgery.errors import ArgumentError
from gradsurgery.kernels.network import wide_on

_ROUNDING = 1e-9
"""The part of a sum by which it may differ, since its order depends on the number of threads."""


class Exchanging(Accumulator):
    """Hands on the means over the processes, and waits for the device once a domain.

    A parameter that is reached in one process has a gradient in all.
    """

    at_once = False

    def __init__(self, accumulator: Accumulator, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters)
        self._accumulator = accumulator
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
        reached = self._in_all(domain, [gradient is not None for gradient in gradients])
        means = mean_gradients(self._parameters, gradients, reached)
        self._accumulator.receive_domain(domain, means)

    @override
    def joint_losses(self, losses: Float[Tensor, " domains"]) -> Float[Tensor, " domains"]:
        self._in_all(len(losses), None)
        means = losses / group.get_world_size()
        group.all_reduce(means)
        return means

    @override
    def finish(self, domains: int, *, poison: bool) -> Update:
        update = self._accumulator.finish(domains, poison=poison)
        check_alike(self._parameters, update.gradients)
        return update

    def _in_all(self, domain: int, reached: Sequence[bool] | None) -> list[bool]:
        """Which parameters a domain reaches in any process; `reached` is None after the last.

        Raises `ArgumentError` where some processes have a further domain and others have not.
        """
        ends = reached is None
        told = [*(reached or [False] * len(self._parameters)), ends, not ends]
        counts = torch.tensor(told, dtype=torch.int32, device="cpu").to(self._parameters[0].device)
        group.all_reduce(counts)
        *found, ending, going_on = counts.tolist()
        if ending and going_on:
            raise ArgumentError(
                f"{ending} of {ending + going_on} processes of the group have {domain} domains, "
                "and the others more; give the losses of the same domains in all, in one order"
            )
        return [count > 0 for count in found]

    @override
    def first_non_finite(self) -> tuple[int, int] | None:
        return self._accumulator.first_non_finite()

    @override
    def bound(self, domains: int) -> float:
        return self._accumulator.bound(domains)


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

    Both are compared by the sum of their components' sizes, and how the weights lie in memory.
    """
    layout = hash(tuple((*parameter.shape, *parameter.stride()) for parameter in parameters))
    weights, made = _size(parameters, parameters[0]), _size(update, parameters[0])
    told = torch.stack([weights, made, torch.full_like(made, layout % 2**20)])
    lowest, highest = told, told.clone()
    group.all_reduce(lowest, group.ReduceOp.MIN)
    group.all_reduce(highest, group.ReduceOp.MAX)
    # what is not finite in one is so in all, and differs from nothing
    of_weights, of_update, of_layout = (highest - lowest > _ROUNDING * highest).tolist()
    ranks = group.get_world_size()
    if of_weights or of_layout:
        raise ArgumentError(
            f"the {ranks} processes of the group hold different weights, or parts of them, or "
            "lay them out in other ways; let all begin with those of one, as "
            "DistributedDataParallel does, and take the same steps"
        )
    if of_update:
        raise ArgumentError(
            f"the {ranks} processes of the group make different updates of the same gradients; "
            "give each the same rule, and a random one a generator of its own with the same seed"
        )


def _size(tensors: Sequence[Tensor | None], like: Tensor) -> Float[Tensor, ""]:
    zero = like.new_zeros((), dtype=wide_on(like.device))
    there = [tensor for tensor in tensors if tensor is not None]
    return torch.stack([zero, *(t.abs().sum(dtype=zero.dtype) for t in there)]).sum()
