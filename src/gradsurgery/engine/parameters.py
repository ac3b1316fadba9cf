"""Whose gradients are taken, those of the parameters that are trained, and what is in `.grad`."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gradsurgery.engine.accumulator import is_part
from gradsurgery.errors import ArgumentError

NamedParameter = tuple[str, Tensor]


def trainable_parameters(
    parameters: Iterable[Tensor] | Iterable[tuple[str, Tensor]], *, no_say: Iterable[str] = ()
) -> list[NamedParameter]:
    """Each parameter that requires a gradient once, with its name or else its position.

    no_say: names that there have to be, also of parameters that require none.
    """
    if isinstance(parameters, nn.Module):
        raise ArgumentError(
            f"parameters are tensors, found the module {type(parameters).__name__}; give "
            "model.parameters() or model.named_parameters()"
        )
    if isinstance(parameters, Tensor) or not isinstance(parameters, Iterable):
        found = "a single one" if isinstance(parameters, Tensor) else type(parameters).__name__
        raise ArgumentError(
            f"parameters are several tensors, found {found}; give model.parameters(), or a list"
        )
    named: dict[int, NamedParameter] = {}
    unknown = dict.fromkeys(no_say)
    position = -1
    for position, item in enumerate(parameters):
        name, parameter = str(position), item
        if isinstance(item, tuple) and len(item) == 2:
            name, parameter = item
        if not isinstance(parameter, Tensor):
            raise ArgumentError(
                f"parameters are tensors or (name, tensor) pairs, found {type(parameter).__name__}"
                f" at position {position}; give model.parameters() or model.named_parameters()"
            )
        if id(parameter) not in named:
            unknown.pop(name, None)
        if parameter.requires_grad:
            _check_trainable(name, parameter)
            named.setdefault(id(parameter), (name, parameter))
    _check_known(unknown)
    if not named:
        why = "no parameter requires a gradient; give at least one that is trained"
        used_up = (
            "found no parameters; model.parameters() is used up by its first use: call it anew"
        )
        raise ArgumentError(why if position >= 0 else used_up)
    return list(named.values())


def _check_known(unknown: Iterable[str]) -> None:
    for name in unknown:
        raise ArgumentError(
            f"no_say is by the names of parameters, found {name!r}, which none has; give names of "
            "model.named_parameters() with those, or positions with model.parameters()"
        )


def _check_trainable(name: str, parameter: Tensor) -> None:
    if isinstance(parameter, nn.UninitializedParameter):
        raise ArgumentError(
            f"parameter {name} has no values before the first pass; call the model once"
        )
    if not parameter.is_leaf:
        raise ArgumentError(f"parameter {name} is not a leaf tensor, so it has no .grad to set")
    if not parameter.is_floating_point():
        raise ArgumentError(
            f"parameter {name} is {parameter.dtype}, and rules compare real numbers; make it "
            "real, e.g. torch.view_as_real(parameter), and view it as complex where it is used"
        )
    if not _fills_memory(parameter):
        raise ArgumentError(
            f"parameter {name} is a part of a larger tensor with gaps in memory; make it a "
            "tensor of its own with .contiguous()"
        )
    if (kind := getattr(parameter, "grad_dtype", parameter.dtype)) != parameter.dtype:
        raise ArgumentError(
            f"parameter {name} is {parameter.dtype} and its gradients {kind}; leave its grad_dtype "
            "as it is, or keep the parameter in that precision and compute under autocast"
        )


def _fills_memory(tensor: Tensor) -> bool:
    """Whether the components lie next to one another, in whatever order."""
    if tensor.numel() == 0 or tensor.is_contiguous():
        return True
    last = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return last + 1 == tensor.numel()


@torch.no_grad()
def kept_gradients(gradients: list[Tensor | None]) -> list[Tensor | None]:
    """What is in `.grad`, copied where the passes may write to its memory."""
    return [
        g.clone() if g is not None and not g.requires_grad and is_part(g) else g for g in gradients
    ]


@torch.no_grad()
def added_gradients(before: list[Tensor | None], new: list[Tensor | None]) -> list[Tensor | None]:
    """The sums of what was in `.grad` and the update, in new memory."""
    pairs = [(n, old) for n, old in zip(new, before, strict=True) if n is not None]
    both = [(n, old) for n, old in pairs if old is not None]
    if both:
        torch._foreach_add_(*map(list, zip(*both, strict=True)))
    return [old if n is None else n for n, old in zip(new, before, strict=True)]


@torch.no_grad()
def written_gradient(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    """The new gradient, in the memory of the old one where that can be written to."""
    if old is None or new is None or old is new:
        return new
    plain = old.layout == torch.strided and not old.requires_grad
    if not plain or any(s == 0 and n > 1 for s, n in zip(old.stride(), old.shape, strict=True)):
        return new
    return old.copy_(new)
