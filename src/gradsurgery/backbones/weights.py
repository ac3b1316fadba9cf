"""Weights files: read without running anything in them, fitted to a model key by key."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from errno import EINVAL
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from gradsurgery.errors import WeightsError, one_line

State = dict[str, Tensor]


def file_digest(path: Path) -> str:
    """The sha256 of a weights file; raises `WeightsError` where it cannot be read."""
    try:
        if path.exists() and not path.is_file():  # a device has no end
            raise OSError(EINVAL, "it is not a regular file")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(
            f"cannot read the weights file {path}: {error.strerror}; "
            "give 'default', 'none' or a .pth, .pt or .safetensors file"
        ) from error


def metadata_of(path: Path) -> dict[str, str]:
    """What a weights file says of itself, as model files of this software do; empty in general."""
    if path.suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def read_state(path: Path) -> State:
    """The state dict in a .pth, .pt or .safetensors file, on the CPU.

    A state dict under the key `state_dict` or `model` is found, and the prefixes that wrappers of
    a model leave (`module.`, `_orig_mod.`) are taken off. Raises `WeightsError` for anything else.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # corrupt bytes lead an unpickler to errors of any kind
        reason = one_line(error)
        if isinstance(error, UnpicklingError):  # whose words recommend to load it nevertheless
            reason = "it holds something else than tensors, as a whole model"
        raise WeightsError(
            f"{path} is no weights file: {reason}; "
            "expected a state dict saved as .pth, .pt or .safetensors"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    named = isinstance(content, Mapping) and all(isinstance(key, str) for key in content)
    if not named or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(
            f"{path} holds no state dict (names with tensors) but a {type(content).__name__}; "
            "save model.state_dict()"
        )
    return {_unwrapped(key): value for key, value in content.items()}


def load_state(
    model: nn.Module,
    state: State,
    heads: tuple[str, ...],
    adapt: Callable[[State], State],
    *,
    name: str,
    origin: str,
) -> None:
    """Copy `state` into `model`; heads for another number of classes are left as they are.

    `adapt` rewrites a state dict that does not fit as it is. Raises `WeightsError`, naming the
    first keys at fault, where it does not fit then either; the model is unchanged in that case.
    """
    expected = model.state_dict()
    fitted = _without_other_heads(state, expected, heads)
    if _misfit(fitted, expected):
        try:
            adapted = adapt(state)
        except Exception as error:  # written for the library's own files, lost in any other
            raise _misfit_error(_misfit(fitted, expected), name, origin, expected) from error
        fitted = _without_other_heads(adapted, expected, heads)
    if misfit := _misfit(fitted, expected):
        raise _misfit_error(misfit, name, origin, expected)
    # All keys and today's version marks are in `expected`; what the file has goes over them.
    expected.update(fitted)
    model.load_state_dict(expected)


def load_all(
    model: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[], State],
    *,
    name: str,
    origin: str,
) -> None:
    """Copy what `read` gives into `model`, which must have tensors of these `shapes` and no others.

    Raises `WeightsError` before anything is read where it has not.
    """
    expected = model.state_dict()
    outline = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    if misfit := _misfit(outline, expected):
        raise _misfit_error(misfit, name, origin, expected)
    expected.update(read())
    model.load_state_dict(expected)


def _unwrapped(key: str) -> str:
    for prefix in ("_orig_mod.", "module.", "_orig_mod."):
        key = key.removeprefix(prefix)
    return key


def _without_other_heads(
    state: State, expected: Mapping[str, Tensor], heads: Iterable[str]
) -> State:
    """`state` with the model's own head in the place of one of another number of classes."""
    state = dict(state)
    for head in heads:
        theirs, ours = state.get(f"{head}.weight"), expected[f"{head}.weight"]
        if theirs is not None and theirs.shape != ours.shape and theirs.shape[1:] == ours.shape[1:]:
            keys = {f"{head}.weight", f"{head}.bias"} & state.keys() & expected.keys()
            state |= {key: expected[key] for key in keys}
    return state


Misfit = dict[str, list[str]]


def _misfit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Misfit:
    """The keys at fault, described, by what is wrong with them; empty where `state` fits."""
    # Old files lack the batch norms' count of batches, which only matters without a momentum.
    missing = [
        f"{key} {list(value.shape)}"
        for key, value in expected.items()
        if key not in state and not key.endswith("num_batches_tracked")
    ]
    unexpected = [
        f"{key} {list(value.shape)}" for key, value in state.items() if key not in expected
    ]
    reshaped = [
        f"{key} {list(value.shape)} for {list(expected[key].shape)}"
        for key, value in state.items()
        if key in expected and value.shape != expected[key].shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    return {kind: keys for kind, keys in kinds.items() if keys}


def _misfit_error(
    misfit: Misfit, name: str, origin: str, expected: Mapping[str, Tensor]
) -> WeightsError:
    faults = "; ".join(
        f"{len(keys)} {kind}: {', '.join(keys[:3])}{', …' if len(keys) > 3 else ''}"
        for kind, keys in misfit.items()
    )
    absent = len(misfit.get("missing", ()))
    wrong = absent + len(misfit.get("of another shape", ()))
    if wrong * 2 > len(expected):
        guess = "the file looks like another architecture; name the backbone it was made for"
    elif all("pos" in key for keys in misfit.values() for key in keys):
        guess = "the file looks made for another image size; give that size"
    else:
        guess = "the file looks like a variant of this backbone, or a part of one; use its own"
    return WeightsError(
        f"{origin} does not fit {name}: of {len(expected)} keys expected, {faults}; {guess}"
    )
