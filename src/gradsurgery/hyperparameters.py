"""The hyperparameters of the objectives: declared once, checked, and listed for users."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from gradsurgery.errors import ArgumentError

_DOMAINBED = "DomainBed"


class Hyperparameter(NamedTuple):
    """A number that users may set.

    low, high: the range; `open_low` leaves `low` itself out.
    """

    name: str
    default: float
    meaning: str
    low: float = 0.0
    high: float = math.inf
    open_low: bool = False
    source: str = _DOMAINBED

    @property
    def range(self) -> str:
        """The range in words, e.g. "at least 0"."""
        least = f"above {self.low:g}" if self.open_low else f"at least {self.low:g}"
        return least if math.isinf(self.high) else f"{least} and at most {self.high:g}"

    def checked(self, value: Any, owner: str) -> Any:
        """The value in the default's type, or an `ArgumentError` naming the range."""
        kind = type(self.default)
        try:
            number = kind(value)
            exact = float(number) == float(value)
        except (TypeError, ValueError, OverflowError):
            number, exact = kind(self.low), False
        inside = self.low < number if self.open_low else self.low <= number
        if not exact or not inside or not number <= self.high or not math.isfinite(number):
            what = "a whole number" if kind is int else "a number"
            raise ArgumentError(f"{owner}.{self.name} is {what} {self.range}, found {value!r}")
        return number


def checked_values(
    owner: str, known: Sequence[Hyperparameter], given: dict[str, Any]
) -> dict[str, Any]:
    """Every known hyperparameter's value: the given one or the default.

    Raises `ArgumentError` for an unknown name, listing those that exist, or a bad value.
    """
    names = [hyperparameter.name for hyperparameter in known]
    for name in given:
        if name not in names:
            choices = ", ".join(f"{owner}.{n}" for n in names) or "none"
            raise ArgumentError(f"{owner} has no hyperparameter {name!r}; it has: {choices}")
    return {h.name: h.checked(given.get(h.name, h.default), owner) for h in known}
