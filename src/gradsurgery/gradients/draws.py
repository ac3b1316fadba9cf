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
    """Entered around a pass over N samples, remembers what is drawn: masks of dropout, noise."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.samples = samples
        self.drawn: list[Tensor] = []

    @override
    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags and not _is_empty(result):
            _check_known(func, args)
            self._receive(func, args, result)
        return result

    def _receive(self, func: Any, args: Sequence[Any], result: Any) -> None:
        self.drawn.append((result[1] if func is _DROPOUT else result).detach().clone())

    def of(self, sample: int) -> "Draws":
        """What to enter around a pass over one sample, which then gets its part of the numbers."""
        return _DrawsOfOne(self, sample)


class _DrawsOfOne(Draws):
    def __init__(self, of_all: Draws, sample: int) -> None:
        super().__init__(1)
        self._among = of_all.samples
        self._left = iter(of_all.drawn)
        self._sample = sample

    @override
    def _receive(self, func: Any, args: Sequence[Any], result: Any) -> None:
        target = result[1] if func is _DROPOUT else result
        target.copy_(self._part(next(self._left, None), target.shape))
        if func is _DROPOUT:
            inputs, probability = args[:2]
            scale = 0.0 if probability == 1 else 1 / (1 - probability)
            result[0].copy_(inputs * target * scale)

    def _part(self, drawn: Tensor | None, shape: torch.Size) -> Tensor:
        """The sample's part of what was drawn for all; all of it where it is for none of them."""
        if drawn is not None and drawn.shape == shape:
            return drawn
        if drawn is not None and drawn.ndim == len(shape):
            sizes = zip(drawn.shape, shape, strict=True)
            apart = [at for at, (all_of_it, own) in enumerate(sizes) if all_of_it != own]
            if len(apart) == 1 and drawn.shape[apart[0]] == self._among * shape[apart[0]]:
                own = shape[apart[0]]
                return drawn.narrow(apart[0], self._sample * own, own)
        raise ArgumentError(
            f"the network draws random numbers of shape {list(shape)} for sample {self._sample} "
            f"alone, which are no part of those that it draws for {self._among} samples; call "
            "model.eval(), or draw numbers for each sample"
        )


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


def _is_empty(result: Any) -> bool:
    return isinstance(result, Tensor) and not result.numel()
