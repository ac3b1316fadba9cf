"""Rules that weigh the domains' gradients by their inner products, these, and weighted sums.

All products and sums are in float64: in float32 a dot product over tens of millions of components
is wrong by 1e-3, components of 1e-23 have squares of zero and those of 1e20 infinite ones.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import isfinite, log2
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gradsurgery.errors import ArgumentError
from gradsurgery.kernels import compiled as kernel
from gradsurgery.kernels.network import kernels_for, sent
from gradsurgery.rules.base import (
    Rule,
    beyond_precision,
    check_rows_finite,
    checked_update,
    forget,
    pieces,
)


class GramianRule(Rule):
    """A rule that weighs the D gradients by their D × D Gramian: g* = Σ_d w_d(G) g_d."""

    @abstractmethod
    def weights(self, gramian: Float[Tensor, "domains domains"]) -> Float[Tensor, " domains"]:
        """The weights w for the Gramian G_ij = g_i · g_j, both float64 on the CPU."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        forget(cls, "weights_on_device", GramianRule, of=("weights",))

    def weights_on_device(
        self, gramian: Float[Tensor, "domains domains"]
    ) -> Float[Tensor, " domains"]:
        """The same where the Gramian lies, maybe on an accelerator; by default by way of the CPU.

        On an accelerator the Gramian may be not finite; what comes out is not used then.
        """
        on_cpu = gramian.cpu().double()
        if not on_cpu.isfinite().all():
            return gramian[0]
        return sent(weights_of(self, on_cpu).to(gramian.dtype), gramian.device)

    def __call__(self, gradients: Float[Tensor, "domains params"]) -> Float[Tensor, " params"]:
        """The update Σ_d w_d g_d."""
        self.check_matrix(gradients)
        gradients = gradients.detach()
        update = torch.empty_like(gradients[0])
        if gradients.numel() and (kernels := kernels_for([update])) is not None:
            rows = [[row] for row in gradients.contiguous().unbind()]
            out: list[Tensor | None] = [update]
            weigh = partial(weights_of, self, on_device=True)
            _, seen = kernels.weigh(rows, (len(update),), weigh, out=out)
            if seen.found:
                check_rows_finite(gradients)
                raise beyond_precision(dtype=gradients.dtype)
            (summed,) = out
            assert summed is not None
            return summed
        scale = 1.0
        if gradients.dtype == torch.float64:
            scale = scale_of(check_rows_finite(gradients))
        gramian = gramian_of(gradients.unbind(0), scale=scale).cpu()
        if not gramian.isfinite().all():  # products of what is narrower are, where the rows are
            check_rows_finite(gradients)
        weights = weights_of(self, gramian)
        weighted_sum(gradients.unbind(0), weights, out=update)
        near = not largest_of_sum(gramian, weights) / scale < torch.finfo(update.dtype).max
        return checked_update(update) if near else update


def weights_of(
    rule: GramianRule, gramian: Float[Tensor, "domains domains"], *, on_device: bool = False
) -> Float[Tensor, " domains"]:
    """What `rule.weights`, or `rule.weights_on_device`, gives for the Gramian, in its precision.

    Raises `ArgumentError` where that is not one real number per domain: whatever takes the weighted
    sum reads as many from memory as there are gradients.
    """
    weights: Any = (rule.weights_on_device if on_device else rule.weights)(gramian)
    if (
        not isinstance(weights, Tensor)
        or weights.shape != gramian.shape[:1]
        or weights.is_complex()
    ):
        found = type(weights).__name__
        if isinstance(weights, Tensor):
            found = f"{weights.dtype} of shape {list(weights.shape)}"
        raise ArgumentError(
            f"the rule {rule.name} gives one weight per domain, expected a tensor of real numbers "
            f"of shape {list(gramian.shape[:1])}, found {found}"
        )
    return weights.detach().to(gramian).contiguous()


def scale_of(largest: float) -> float:
    """The power of two to multiply gradients with whose largest component is `largest`.

    1, unless the squares of float64 would overflow or vanish. The weights of the rules here do not
    depend on it.
    """
    if largest == 0 or not isfinite(largest) or 1e-140 < largest < 1e140:
        return 1.0
    return 2.0 ** min(-round(log2(largest)), 1000)


def largest_of_sum(
    gramian: Float[Tensor, "domains domains"], weights: Float[Tensor, " domains"]
) -> float:
    """Σ_d |w_d| √G_dd: no component of Σ_d w_d g_d is larger."""
    return float(gramian.diagonal().sqrt() @ weights.abs())


def gramian_of(
    rows: Sequence[Float[Tensor, " params"]], *, scale: float = 1.0
) -> Float[Tensor, "domains domains"]:
    """G_ij = s² Σ_n rows[i]_n rows[j]_n, float64, for rows on the processor."""
    if scale != 1:
        rows = [row.double() * scale for row in rows]
    if (name := kernel.name_for("add_gramian", *rows)) is not None:
        return kernel.gramian(name, rows)
    total = rows[0].new_zeros(len(rows), len(rows), dtype=torch.float64)
    for piece in pieces(*rows):
        wide = torch.stack(piece).double()
        total += wide @ wide.T
    return total


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply float32 as float32, whatever the user allows the layers of the network."""
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)


def cosines_of(gramian: Float[Tensor, "domains domains"]) -> Float[Tensor, "domains domains"]:
    """cos_ij = G_ij / √(G_ii G_jj), and 0 where a gradient is zero."""
    norms = gramian.diagonal().sqrt()
    scale = norms[:, None] * norms[None, :]
    return torch.where(scale > 0, gramian / scale, 0.0)


def weighted_sum(
    rows: Sequence[Float[Tensor, " params"]],
    weights: Float[Tensor, " domains"],
    *,
    out: Float[Tensor, " params"],
) -> Float[Tensor, " params"]:
    """Write Σ_d w_d rows[d] into `out`, which may be the first of the rows."""
    if (name := kernel.name_for("weighted_sum", *rows, out)) is not None:
        kernel.weighted_sum(name, rows, weights, out)
        return out
    first, *rest = weights.tolist()
    for target, row, *others in pieces(out, *rows):
        total = row.double() * first  # weights may be beyond float32
        for other, weight in zip(others, rest, strict=True):
            total.add_(other, alpha=weight)
        target.copy_(total)
    return out
