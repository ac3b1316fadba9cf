"""The seam between what produces the domains' gradients and what keeps them for the rule.

A producer (`passes.py`) hands the gradients over by `receive`, or a whole domain at once by
`receive_domain`, and knows nothing of what becomes of them; an accumulator knows nothing of where
they come from.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Update(NamedTuple):
    """The update per parameter (None where no domain reached it) and what was seen on the way.

    gramian: of the D gradients, for the rules that need it.
    agreeing: per parameter how many components agree and are not zero in every domain; None for
        rules without Φ.
    zeros: per parameter how many are zero in every domain.
    sizes: per parameter how many components a domain reaches.
    flags: [domains, parameters], not 0 where a gradient was not finite; None where that was looked
        at beforehand.
    found: 1.0 where a flag is set, or where `rule`, of whose making the update is, has made what is
        not finite.
    """

    gradients: list[Tensor | None]
    gramian: Float[Tensor, "domains domains"] | None = None
    agreeing: Tensor | None = None
    zeros: Tensor | None = None
    sizes: list[int] | None = None
    flags: Tensor | None = None
    found: Tensor | None = None
    rule: str | None = None


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

    @abstractmethod
    def finish(self, domains: int, *, poison: bool) -> Update:
        """The update; with `poison` it is NaN where any domain's gradient was not finite."""

    def first_non_finite(self) -> tuple[int, int] | None:
        """The domain and the position of the first parameter whose gradient is not finite.

        None also where the update's own flags tell.
        """
        return None

    @property
    def largest(self) -> float:
        """The size of the largest component of all gradients, 0 where that is not known."""
        return 0.0
