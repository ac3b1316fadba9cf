"""Checks annotated types and shapes at run time."""

from functools import partial, wraps
from inspect import isclass, isfunction
from typing import Any, get_args

import jaxtyping

_jaxtyped = jaxtyping.jaxtyped


def check_annotations(package: str) -> None:
    """Have what is imported from the package checked from now on."""
    jaxtyping.jaxtyped = _checked
    jaxtyping.install_import_hook(package, "beartype.beartype")


def _checked(function: Any = None, *, typechecker: Any) -> Any:
    """What the hook decorates with instead of `jaxtyped`, which would double the tests' time.

    It binds the arguments and checks them twice at every call. Functions within functions are left
    out: they would be decorated anew at every call of the outer one.
    """
    if function is None:
        return partial(_checked, typechecker=typechecker)
    hints = getattr(function, "__annotations__", {}).values()
    if not isfunction(function) or any(isinstance(hint, str) for hint in hints):
        return _jaxtyped(function, typechecker=typechecker)  # the name may be for type checkers
    if "<locals>" in function.__qualname__:
        return function
    checked = typechecker(function)
    if not any(map(_has_shape, hints)):
        return checked

    @wraps(function)
    def with_lengths(*arguments: Any, **options: Any) -> Any:
        with _jaxtyped("context"):  # in which a name is one length
            return checked(*arguments, **options)

    return with_lengths


def _has_shape(annotation: Any) -> bool:
    if isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(map(_has_shape, get_args(annotation)))
