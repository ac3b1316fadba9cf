"""The ranges of the rules' options."""

from collections.abc import Iterable

from gradsurgery.errors import ArgumentError


def check_options(rule: str, known: Iterable[str], given: Iterable[str]) -> None:
    """Raise `ArgumentError` where an option is given that is not known."""
    if unknown := sorted(set(given) - set(known)):
        choices = ", ".join(sorted(known)) or "none"
        raise ArgumentError(f"rule {rule!r} has no option {unknown[0]!r}; it has: {choices}")


def check_range(
    rule: str, option: str, value: float, low: float, high: float, *, ends: str = "[]"
) -> None:
    """Raise `ArgumentError` unless `value` lies between `low` and `high`.

    ends: "[]", "[)", "(]" or "()"; a square bracket includes that end.
    """
    above = value >= low if ends[0] == "[" else value > low
    below = value <= high if ends[1] == "]" else value < high
    if not (above and below):
        raise ArgumentError(
            f"{option} of the rule {rule} is in {ends[0]}{low:g}, {high:g}{ends[1]}, found {value}"
        )


def check_reduction(value: str) -> None:
    """Raise `ArgumentError` unless `value` names a reduction over the domains."""
    if value not in ("sum", "mean"):
        raise ArgumentError(f"reduction is 'sum' or 'mean', found {value!r}")
