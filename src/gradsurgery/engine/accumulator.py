"""The seam between what produces the domains' gradients and what keeps them for the rule.

A producer (`passes.py`) hands the gradients over by `receive`, or a whole domain at once by
`receive_domain`, and knows nothing of what becomes of them; an accumulator knows nothing of where
they come from.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from gradsurgery.errors import ArgumentError
from gradsurgery.rules.base import largest_size


class Update(NamedTuple):
    """The update per parameter (None where no domain reached it) and what was seen on the way.

    gramian: of the D gradients, for the rules that need it.
    agreeing: per parameter how many components agree and are not zero in every domain; None for
        rules without Φ.
    moving: per parameter how many are not zero in every domain.
    sizes: per parameter how many components a domain reaches.
    flags: [domains, parameters], where a gradient was not finite: whole numbers that are not 0, or
        numbers that are not finite. None where that was looked at beforehand.
    owners: the parameter of each column of `agreeing`, `moving` and `flags`, where these are of
        parts of the parameters; None where they have one a parameter.
    found: 1.0 where a flag is set, or where `rule`, of whose making the update is, has made what is
        not finite.
    """

    gradients: list[Tensor | None]
    gramian: Float[Tensor, "domains domains"] | None = None
    agreeing: Tensor | None = None
    moving: Tensor | None = None
    sizes: list[int] | None = None
    flags: Tensor | None = None
    owners: Tensor | None = None
    found: Tensor | None = None
    rule: str | None = None

    def counts(self) -> list[tuple[int, int, int]]:
        """Per parameter the components that agree, those that move, and all that are reached."""
        if self.agreeing is None or self.moving is None:
            return []
        both, sizes = torch.stack([self.agreeing, self.moving]).long(), self.sizes or []
        if self.owners is not None:
            both = both.new_zeros(2, len(sizes)).index_add_(1, self.owners, both)
        return list(zip(*both.tolist(), sizes, strict=True))

    def not_finite(self) -> list[tuple[int, int]]:
        """Domain and parameter, by position, of the gradients that are flagged."""
        if self.flags is None:
            return []
        flags = ~self.flags.isfinite() if self.flags.is_floating_point() else self.flags
        domains, columns = flags.nonzero(as_tuple=True)
        parameters = columns if self.owners is None else self.owners[columns]
        return sorted(set(zip(domains.tolist(), parameters.tolist(), strict=True)))


def check_form(update: Any, rule: str, matrix: Tensor) -> None:
    """Raise `ArgumentError` where what a rule returns is no update."""
    if not isinstance(update, Tensor) or update.shape != matrix.shape[1:]:
        found = list(update.shape) if isinstance(update, Tensor) else type(update).__name__
        raise ArgumentError(
            f"the rule {rule} gives one component per column of the gradients, expected a tensor "
            f"of shape {list(matrix.shape[1:])}, found {found}"
        )
    if not update.is_floating_point():
        raise ArgumentError(
            f"the rule {rule} gives an update of {update.dtype}, expected real numbers as "
            f"{matrix.dtype}; convert it"
        )


def not_finite_update(rule: str) -> ArgumentError:
    """The error of a rule that is at fault itself."""
    return ArgumentError(
        f"the rule {rule} makes NaN or infinity of gradients that are finite; mend the rule"
    )


class Accumulator(ABC):
    """Receives the gradients of one domain after the other, and gives the rule's update.

    at_once: whether a gradient is best received as soon as it is there, by `receive`; else all of a
        domain's are received together.
    """

    at_once = True

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters

    @abstractmethod
    def receive(self, position: int, domain: int, gradient: Tensor | None) -> None:
        """One domain's gradient of one parameter; None where the domain does not reach it.

        Every position once a domain, in any order, the domains in order from 0. The gradient's
        memory is the accumulator's from now on.
        """

    def receive_domain(self, domain: int, gradients: Sequence[Tensor | None]) -> None:
        """All gradients of one domain, one a parameter."""
        for position, gradient in enumerate(gradients):
            self.receive(position, domain, gradient)

    def joint_losses(self, losses: Float[Tensor, " domains"]) -> Float[Tensor, " domains"]:
        """The losses of the domains, of which there are no further ones."""
        return losses

    def joint_unreached(self, unreached: Counter[int]) -> Counter[int]:
        """By a parameter's position, how many domains do not reach it."""
        return unreached

    @abstractmethod
    def finish(self, domains: int, *, poison: bool) -> Update:
        """The update; with `poison` it is NaN where any domain's gradient was not finite."""

    def first_non_finite(self) -> tuple[int, int] | None:
        """The domain and the position of the first parameter whose gradient is not finite.

        None also where the update's own flags tell.
        """
        return None

    def bound(self, domains: int) -> float:
        """What no component of the update of finite gradients is larger than.

        0 where it is known to be finite already.
        """
        return 0.0


class Between(Accumulator):
    """Stands between a producer and an accumulator, and changes gradients on their way."""

    def __init__(self, accumulator: Accumulator, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters)
        self._accumulator = accumulator

    @override
    def finish(self, domains: int, *, poison: bool) -> Update:
        return self._accumulator.finish(domains, poison=poison)

    @override
    def first_non_finite(self) -> tuple[int, int] | None:
        return self._accumulator.first_non_finite()

    @override
    def bound(self, domains: int) -> float:
        return self._accumulator.bound(domains)


class SingleGradients(Accumulator):
    """Receives one gradient after the other, and looks whether it is finite."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters)
        # the size of the largest component by domain and position, NaN where there is one
        self._largest: dict[tuple[int, int], Tensor] = {}
        self._kept: set[int] = set()

    @override
    def receive(self, position: int, domain: int, gradient: Tensor | None) -> None:
        if gradient is None:
            self._add(position, domain, None)
            return
        flat = flat_gradient(gradient, self._parameters[position])
        if flat.numel():
            self._largest[domain, position] = largest_size(flat)
        self._add(position, domain, flat)

    @abstractmethod
    def _add(self, position: int, domain: int, gradient: Float[Tensor, " params"] | None) -> None:
        """Keep what the rule needs of the gradient."""

    def _own(self, gradient: Float[Tensor, " params"]) -> Float[Tensor, " params"]:
        """The gradient to keep and write to: a copy where another that is kept has its memory.

        Autograd gives two parameters the same memory where they are added up as views.
        """
        memory = gradient.untyped_storage().data_ptr()
        if (memory in self._kept and gradient.numel()) or is_part(gradient):
            return gradient.clone()
        self._kept.add(memory)
        return gradient

    @override
    def first_non_finite(self) -> tuple[int, int] | None:
        if not self._largest:
            return None
        finite = torch.stack(list(self._largest.values())).isfinite().tolist()
        found = [where for where, good in zip(self._largest, finite, strict=True) if not good]
        return min(found, default=None)

    @override
    def bound(self, domains: int) -> float:
        # a sum of the gradients, or one divided by a fraction of the components
        return self._size() * domains * sum(p.numel() for p in self._parameters)

    def _size(self) -> float:
        """The size of the largest component of all gradients."""
        if not self._largest:
            return 0.0
        return float(torch.stack(list(self._largest.values())).max())

    def _shaped(self, flat: Tensor, position: int, *, poison: bool) -> Tensor:
        """The flat update in the parameter's shape."""
        for (_, at), largest in self._largest.items() if poison else ():
            if at == position:
                flat.add_(largest * 0)  # 0, or NaN where one is not finite
        return shaped_gradient(flat, self._parameters[position])


def flat_gradient(gradient: Tensor, parameter: Tensor) -> Float[Tensor, " params"]:
    """The gradient's components in the order in which `parameter` lies in memory.

    A view where the two are laid out alike, which autograd sees to, and a copy elsewhere. How far
    apart the components of a dimension of length 1 would be says nothing.
    """
    if gradient.layout != torch.strided:
        raise ArgumentError(
            f"gradients are dense, found {gradient.layout}; build Embedding with sparse=False"
        )
    lengths = zip(gradient.stride(), parameter.stride(), parameter.shape, strict=True)
    if any(own != other for own, other, size in lengths if size != 1):
        gradient = torch.empty_like(parameter, requires_grad=False).copy_(gradient)
    gradient = gradient.resolve_neg()  # what is imaginary has its minus sign outside its memory
    if gradient.is_contiguous():
        return gradient.view(-1)
    return gradient.as_strided((gradient.numel(),), (1,))


def shaped_gradient(flat: Float[Tensor, " params"], parameter: Tensor) -> Tensor:
    """The inverse of `flat_gradient`: the same memory in the parameter's shape and layout."""
    return flat.as_strided(parameter.size(), parameter.stride())


def is_part(gradient: Tensor) -> bool:
    """Whether its memory is a part of a larger one, which whoever has that writes to.

    As DistributedDataParallel does in every pass, with gradient_as_bucket_view=True.
    """
    if gradient.layout != torch.strided or not gradient.numel():
        return False
    return gradient.untyped_storage().nbytes() > gradient.numel() * gradient.element_size()


def taken_gradients(parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """What is in `.grad`, which is None afterwards; no two share memory.

    Autograd gives two parameters the same memory where they are added up as views.
    """
    gradients: list[Tensor | None] = []
    seen: set[int] = set()
    for parameter in parameters:
        gradient, parameter.grad = parameter.grad, None
        if gradient is not None and gradient.layout == torch.strided and gradient.numel():
            memory = gradient.untyped_storage().data_ptr()
            gradient = gradient.clone() if memory in seen or is_part(gradient) else gradient
            seen.add(memory)
        gradients.append(gradient)
    return gradients
