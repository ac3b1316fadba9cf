"""Sum, mean, median and trimmed mean of each component."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from gradsurgery.hyperparameters import Hyperparameter
from gradsurgery.kernels.network import Combination
from gradsurgery.rules.base import (
    ComponentwiseRule,
    Consensus,
    Rule,
    State,
    check_rows_finite,
    divided,
    piece_length,
    scratch,
)


class Sum(ComponentwiseRule):
    """g* = Σ_d g_d.

    >>> Sum()(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
    tensor([4., 2.])
    """

    name = "sum"
    minimum_domains = 1

    @override
    def combination(self, domains: int) -> Combination | None:
        return Combination("sum", (float(self.divisor(domains)),))

    def start(self, gradient: Float[Tensor, " params"]) -> State:
        """The total after the first domain."""
        return (gradient,)

    def fold(self, state: State, gradient: Float[Tensor, " params"]) -> State:
        """The total after one more domain."""
        (total,) = state
        return (total.add_(gradient),)

    def finish(self, states: Sequence[State], domains: int) -> Consensus:
        """The totals, divided by what the rule divides by."""
        return Consensus(divided([total for (total,) in states], self.divisor(domains)))


class Mean(Sum):
    """g* = (1/D) Σ_d g_d: the gradient of the mean loss, Deep-All by one pass per domain.

    >>> Mean()(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
    tensor([2., 1.])
    """

    name = "mean"

    @override
    def divisor(self, domains: int) -> int:
        return domains


# An accelerator's piece: what is sorted is a copy, which should stay small beside the gradients.
_LONGEST_PIECE = 1 << 24


class MiddleRule(Rule):
    """A rule that leaves out the largest and the smallest values of every component.

    All D values of a component are needed at once: `gradsurgery.backward` stores the D gradients.
    """

    @abstractmethod
    def trimmed(self, domains: int) -> int:
        """How many values are left out at each end."""

    @override
    def __call__(self, gradients: Float[Tensor, "domains params"]) -> Float[Tensor, " params"]:
        self.check_matrix(gradients)
        gradients = gradients.detach()
        check_rows_finite(gradients)
        return self.of_finite(gradients)

    @override
    def of_finite(self, gradients: Float[Tensor, "domains params"]) -> Float[Tensor, " params"]:
        self.check_domains(len(gradients))
        return mean_of_middle(gradients, self.trimmed(len(gradients)))


class TrimmedMean(MiddleRule):
    """g*_n = the mean of g_1n … g_Dn without the `trim` largest and the `trim` smallest.

    trim: how many values to leave out at each end, at least 0. Default 1, which needs 3 domains.
        The paper gives the fraction β = trim / D, in [0, ½).

    Source: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
    ICML 2018, definition 2.

    >>> TrimmedMean()(torch.tensor([[1.0], [2.0], [4.0], [100.0]]))
    tensor([3.])
    """

    name = "trimmed-mean"

    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (
        Hyperparameter("trim", 1, "values left out at each end", source="Yin et al. 2018"),
    )

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.minimum_domains = 2 * self.values["trim"] + 1

    @override
    def trimmed(self, domains: int) -> int:
        trim: int = self.values["trim"]
        return trim


class Median(MiddleRule):
    """g*_n = the median of g_1n … g_Dn, for an even D the mean of the middle two.

    Source: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
    ICML 2018, definition 1.

    >>> Median()(torch.tensor([[1.0, 5.0], [2.0, -5.0], [100.0, 0.0]]))
    tensor([2., 0.])
    """

    name = "median"

    @override
    def trimmed(self, domains: int) -> int:
        return (domains - 1) // 2


def mean_of_middle(
    gradients: Float[Tensor, "domains params"], trim: int
) -> Float[Tensor, " params"]:
    """The mean over the rows between the `trim` smallest and the `trim` largest of each column."""
    update = torch.empty_like(gradients[0])
    length = min(piece_length(update), _LONGEST_PIECE)
    buffers = scratch(update, len(gradients) + 1)[:, :length]
    for rows, target in zip(gradients.split(length, 1), update.split(length), strict=True):
        *copies, spare = buffers[:, : len(target)].unbind(0)
        for copy, row in zip(copies, rows, strict=True):
            copy.copy_(row)
        sort_columns(copies, spare)
        middle = buffers[trim : len(gradients) - trim, : len(target)]
        torch.mean(middle, 0, out=target)
        if len(middle) > 1:
            _mend_overflows(target, middle)
    return update


def _mend_overflows(means: Float[Tensor, " params"], rows: Float[Tensor, "_ params"]) -> None:
    """Where a sum was beyond the precision, the sum of the rows' shares in its place."""
    overflowed = means.isfinite().logical_not_()
    if means.device.type != "cpu" or overflowed.any():  # elsewhere to ask would be to wait
        means.copy_(torch.where(overflowed, rows.div_(len(rows)).sum(0), means))


def sort_columns(rows: Sequence[Float[Tensor, " params"]], spare: Float[Tensor, " params"]) -> None:
    """Sort every column in place, by odd-even transposition.

    Its D (D − 1) / 2 comparisons run over whole rows, for few rows 10 to 20 times faster than
    torch.sort, which takes every column by itself.
    """
    for turn in range(len(rows)):
        for left, right in zip(rows[turn % 2 :: 2], rows[turn % 2 + 1 :: 2], strict=False):
            torch.minimum(left, right, out=spare)
            torch.maximum(left, right, out=right)
            left.copy_(spare)
