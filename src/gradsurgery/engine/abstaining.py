"""Domains that have no say on some rows of a parameter."""

import warnings
from collections.abc import Container, Mapping, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor
from typing_extensions import override

from gradsurgery.engine.accumulator import Accumulator, Between, Update
from gradsurgery.errors import ArgumentError

NO_WEIGHT = 2.0**-60
"""What a vote weighs that only has a sign: lost in the rounding of a sum of gradients.

It is no smaller than the smallest normal number, and so keeps its sign.
"""


class Abstaining(Between):
    """Hands on gradients in which a domain abstains where it has no say.

    Where a domain has no say and its gradient is zero, it votes with the first domain that has a
    say, without weight: the signs agree where those of the other domains do, and the sum is theirs.

    no_say: by a parameter's position, the rows that a domain has no say on. Their gradients are
        kept until all domains' are there; where the accumulator takes a whole domain at once, those
        of all parameters.
    """

    def __init__(
        self,
        accumulator: Accumulator,
        parameters: Sequence[Tensor],
        no_say: Mapping[int, Bool[Tensor, "domains rows"]],
    ) -> None:
        super().__init__(accumulator, parameters)
        if any(parameters[position].dtype == torch.float16 for position in no_say):
            raise ArgumentError(
                "a vote without weight is lost in float16; keep the parameters of no_say in "
                "float32, and compute under autocast"
            )
        self.at_once = accumulator.at_once
        self._no_say = no_say
        self._domains = len(next(iter(no_say.values())))
        self._held: dict[int, list[Tensor | None]] = {position: [] for position in no_say}
        self._whole: list[list[Tensor | None]] = []

    @override
    def receive(self, position: int, domain: int, gradient: Tensor | None) -> None:
        if position not in self._no_say:
            self._accumulator.receive(position, domain, gradient)
            return
        if domain >= self._domains:
            self.check_domains(domain + 1)
        self._held[position].append(gradient)
        if len(self._held[position]) == self._domains:
            votes = with_votes(self._held.pop(position), self._no_say[position])
            for at, vote in enumerate(votes):
                self._accumulator.receive(position, at, vote)

    @override
    def receive_domain(self, domain: int, gradients: Sequence[Tensor | None]) -> None:
        if self.at_once:
            super().receive_domain(domain, gradients)
            return
        if domain >= self._domains:
            self.check_domains(domain + 1)
        self._whole.append(list(gradients))
        if len(self._whole) == self._domains:
            for position, mask in self._no_say.items():
                votes = with_votes([whole[position] for whole in self._whole], mask)
                for whole, vote in zip(self._whole, votes, strict=True):
                    whole[position] = vote
            for at, whole in enumerate(self._whole):
                self._accumulator.receive_domain(at, whole)
            self._whole.clear()

    @override
    def finish(self, domains: int, *, poison: bool) -> Update:
        self.check_domains(domains)
        return super().finish(domains, poison=poison)

    def check_domains(self, domains: int) -> None:
        """Raise `ArgumentError` where there are more domains or fewer than the rows speak of."""
        if domains != self._domains:
            raise ArgumentError(
                f"no_say is of {self._domains} domains, found {domains} losses; give a row for "
                "every domain"
            )


def with_votes(
    gradients: Sequence[Tensor | None], no_say: Bool[Tensor, "domains rows"]
) -> list[Tensor | None]:
    """The domains' gradients of one parameter, with the votes of those that have no say on a row.

    A row that no domain has a say on is left as it is, and what is not finite makes no vote.
    """
    there = next((gradient for gradient in gradients if gradient is not None), None)
    if there is None:
        return list(gradients)
    masks = no_say.reshape(*no_say.shape, *(1,) * (there.ndim - 1))
    leading = torch.zeros_like(there)  # the gradient of the first that has a say, by row
    voted = masks[0] & False
    for gradient, mask in zip(gradients, masks, strict=True):
        if gradient is not None:
            leading = gradient.where(~mask & ~voted, leading)
        voted = voted | ~mask
    size = (leading.abs() * NO_WEIGHT).clamp_min(torch.finfo(leading.dtype).tiny)
    votes = (leading.sign() * size).masked_fill(~leading.isfinite(), 0.0)
    return [
        votes * mask if gradient is None else gradient.where(~mask | (gradient != 0), votes)
        for gradient, mask in zip(gradients, masks, strict=True)
    ]


def warn_of_heads(missing: Mapping[str, int], domains: int, no_say: Container[str]) -> None:
    """Warn of parameters on which domains cannot agree, since the losses of some do not reach them.

    missing: by the name of a parameter the number of domains that do not reach it.
    """
    heads = [name for name, n in missing.items() if 0 < n < domains and name not in no_say]
    if not heads:
        return
    others = f" (and {len(heads) - 1} more)" if len(heads) > 1 else ""
    warnings.warn(
        f"the rule asks all losses to agree, and parameter {heads[0]}{others} is reached by "
        f"{domains - missing[heads[0]]} of {domains} alone, and not learned; say with no_say which "
        "losses have no say on it, or train it by itself",
        stacklevel=5,
    )
