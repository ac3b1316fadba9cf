"""The random numbers of a pass over all samples, for passes over one of them alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from gradsurgery.errors import ArgumentError

_DROPOUT = torch.ops.aten.native_dropout.default


class Draws(TorchDispatchMode):
    """Entered around a pass over N samples, remembers what is drawn: masks of dropout, noise.

    With `given`, entered around a pass over one sample, gives it its part of these draws.
    """

    def __init__(self, samples: int, given: "tuple[Draws, int] | None" = None) -> None:
        super().__init__()
        self.samples = samples
        self.drawn: list[Tensor] = []
        self._given = given

    @override
    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded not in func.tags or _drops_nothing(func, args, kwargs):
            return result
        _check_known(func, args)
        numbers = result[1] if func is _DROPOUT else result
        if self._given is not None:
            draws, sample = self._given
            numbers.copy_(draws._part_of(sample, len(self.drawn), numbers.shape))
            if func is _DROPOUT:
                inputs, probability = args[:2]
                result[0].copy_(
                    inputs * numbers * (1 / (1 - probability) if probability < 1 else 0)
                )
        self.drawn.append(numbers.clone())
        return result

    def _part_of(self, sample: int, place: int, shape: torch.Size) -> Tensor:
        """Of one draw the part that is the sample's, or all of it where it is not by sample."""
        drawn = self.drawn[place] if place < len(self.drawn) else torch.empty(0)
        if drawn.shape == shape:
            return drawn
        sizes = zip(drawn.shape, shape, strict=False)
        apart = [at for at, (of_all, own) in enumerate(sizes) if of_all != own]
        if drawn.ndim == len(shape) and len(apart) == 1:
            own = shape[apart[0]]
            if drawn.shape[apart[0]] == self.samples * own:
                return drawn.narrow(apart[0], sample * own, own)
        raise ArgumentError(
            f"the network draws random numbers of shape {list(shape)} for sample {sample} alone, "
            f"which are no part of those that it draws for {self.samples} samples; call "
            "model.eval(), or draw numbers for each sample"
        )


def _drops_nothing(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> bool:
    """Whether this is an attention without dropout, which draws nothing."""
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
    return "dropout_p" in names and given.get("dropout_p", 0.0) == 0


def _check_known(func: Any, args: Sequence[Any]) -> None:
    """Raise `ArgumentError` where numbers cannot be given again."""
    name = func.overloadpacket.__name__
    given = [one for one in args if isinstance(one, Tensor)]
    plain = not given or (len(given) == 1 and (name.endswith(("_", "_like")) or func is _DROPOUT))
    if plain and torch._C._autograd._top_saved_tensors_default_hooks(True) is None:
        return
    where = f"by {name}" if not plain else "inside torch.utils.checkpoint"
    raise ArgumentError(
        f"the network draws random numbers {where}, and whether samples see each other cannot be "
        "checked there; call model.eval(), or draw them elsewhere"
    )
