"""The parameters that take part, and their gradients as flat tensors."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

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
    for position, item in enumerate(parameters):
        name, parameter = str(position), item
        if isinstance(item, tuple) and len(item) == 2:
            name, parameter = item
        if not isinstance(parameter, Tensor):
            raise ArgumentError(
                f"parameters are tensors or (name, tensor) pairs, found {type(parameter).__name__}"
                f" at position {position}; give model.parameters() or model.named_parameters()"
            )
        if isinstance(parameter, nn.UninitializedParameter):
            raise ArgumentError(
                f"parameter {name} has no values before the first pass; call the model once"
            )
        if parameter.requires_grad and not parameter.is_leaf:
            raise ArgumentError(f"parameter {name} is not a leaf tensor, so it has no .grad to set")
        if parameter.requires_grad and not parameter.is_floating_point():
            raise ArgumentError(
                f"parameter {name} is {parameter.dtype}, and rules compare real numbers; make it "
                "real, e.g. torch.view_as_real(parameter), and view it as complex where it is used"
            )
        if parameter.requires_grad and not _fills_memory(parameter):
            raise ArgumentError(
                f"parameter {name} is a part of a larger tensor with gaps in memory; make it a "
                "tensor of its own with .contiguous()"
            )
        if id(parameter) not in named:
            unknown.pop(name, None)
        if parameter.requires_grad:
            named.setdefault(id(parameter), (name, parameter))
    _check_known(unknown)
    if not named:
        raise ArgumentError("no parameter requires a gradient; give at least one that is trained")
    return list(named.values())


def _check_known(unknown: Iterable[str]) -> None:
    for name in unknown:
        raise ArgumentError(
            f"no_say is by the names of parameters, found {name!r}, which none has; give names of "
            "model.named_parameters() with those, or positions with model.parameters()"
        )


def _fills_memory(tensor: Tensor) -> bool:
    """Whether the components lie next to one another, in whatever order."""
    if tensor.numel() == 0 or tensor.is_contiguous():
        return True
    last = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return last + 1 == tensor.numel()


def laid_out_as(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The gradients, whose components lie in memory as those of their parameters do."""
    return [
        gradient
        if gradient is None
        or (gradient.layout == torch.strided and gradient.stride() == parameter.stride())
        else shaped_gradient(flat_gradient(gradient, parameter), parameter)
        for gradient, parameter in zip(gradients, parameters, strict=True)
    ]


def flat_gradient(gradient: Tensor, parameter: Tensor) -> Float[Tensor, " params"]:
    """The gradient's components in the order in which `parameter` lies in memory.

    A view where the two are laid out alike, which autograd sees to, and a copy elsewhere.
    """
    if gradient.layout != torch.strided:
        raise ArgumentError(
            f"gradients are dense, found {gradient.layout}; build Embedding with sparse=False"
        )
    if gradient.stride() != parameter.stride():
        gradient = torch.empty_like(parameter, requires_grad=False).copy_(gradient)
    if gradient.is_contiguous():
        return gradient.view(-1)
    return gradient.as_strided((gradient.numel(),), (1,))


def shaped_gradient(flat: Float[Tensor, " params"], parameter: Tensor) -> Tensor:
    """The inverse of `flat_gradient`: the same memory in the parameter's shape and layout."""
    return flat.as_strided(parameter.size(), parameter.stride())
