"""The hyperparameters of objectives, rules and averages: declared once, checked, and listed."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gradsurgery.errors import ArgumentError

DOMAINBED = "DomainBed"
"""The source of most defaults of the methods compared with."""

Value = int | float | bool | str | None


class Setting(NamedTuple):
    """A hyperparameter as users see it."""

    name: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Hyperparameter:
    """A value that users may set: a number, true or false, or one of some words.

    default: its type is the value's; None stands for a number that is not set.
    low, high: the range of a number; `open_low` and `open_high` leave the ends themselves out.
    choices: the words, where it is one.
    source: of the default.

    >>> Hyperparameter("tau", 1.0, "threshold", high=1.0).checked("0.5", "and-mask")
    0.5
    """

    name: str
    default: Value
    meaning: str
    low: int | float = 0.0
    high: int | float = math.inf
    open_low: bool = False
    open_high: bool = False
    choices: tuple[str, ...] = ()
    source: str = ""

    @property
    def range(self) -> str:
        """What it may be, in words, e.g. "a number at least 0"."""
        if self.choices:
            return " or ".join(map(repr, self.choices))
        if isinstance(self.default, bool):
            return "true or false"
        number = "a whole number" if isinstance(self.default, int) else "a number"
        least = f"{'above' if self.open_low else 'at least'} {self.low:g}"
        if math.isinf(self.high):
            return f"{number} {least}"
        return f"{number} {least} and {'below' if self.open_high else 'at most'} {self.high:g}"

    def checked(self, value: Any, owner: str) -> Any:
        """The value in its type, also from text, or an `ArgumentError` naming the range."""
        if value is None and self.default is None:
            return None
        try:
            if self.choices:
                return self.choices[self.choices.index(value)]
            return _boolean(value) if isinstance(self.default, bool) else self._number(value)
        except (TypeError, ValueError, OverflowError):
            raise ArgumentError(f"{owner}.{self.name} is {self.range}, found {value!r}") from None

    def _number(self, value: Any) -> int | float:
        number: int | float = int(value) if isinstance(self.default, int) else float(value)
        above = self.low < number if self.open_low else self.low <= number
        below = number < self.high if self.open_high else number <= self.high
        if not (above and below and math.isfinite(number) and float(number) == float(value)):
            raise ValueError(value)
        return number

    def listed(self, owner: str) -> Setting:
        """How `settings` takes it and what it does."""
        default = f"{self.default:g}" if type(self.default) in (int, float) else str(self.default)
        source = f" ({self.source})" if self.source else ""
        return Setting(f"{owner}.{self.name}", default, f"{self.meaning}; {self.range}{source}")


def spelled(owner: Any) -> str:
    """An object with its hyperparameters, as `AgrSum(reduction='sum')`."""
    values = getattr(owner, "values", {}).items()
    return f"{type(owner).__name__}({', '.join(f'{name}={value!r}' for name, value in values)})"


def checked_values(
    owner: str, known: Sequence[Hyperparameter], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Every known hyperparameter's value: the given one or the default.

    Raises `ArgumentError` for an unknown name, listing those that exist, or a bad value.
    """
    check_names(owner, [hyperparameter.name for hyperparameter in known], given)
    return {h.name: h.checked(given.get(h.name, h.default), owner) for h in known}


def check_names(owner: str, known: Sequence[str], given: Iterable[str]) -> None:
    """Raise `ArgumentError` for a name that is not known, listing those that are."""
    for name in given:
        if name not in known:
            choices = ", ".join(known) or "none"
            raise ArgumentError(f"{owner} has no hyperparameter {name!r}; it has: {choices}")


def _boolean(value: Any) -> bool:
    if str(value).lower() in ("true", "1", "1.0", "yes"):
        return True
    if str(value).lower() in ("false", "0", "0.0", "no"):
        return False
    raise ValueError(value)
