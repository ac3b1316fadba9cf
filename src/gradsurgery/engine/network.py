"""What is kept of the domains' gradients on an accelerator, for all parameters at once.

What was not finite is noted on the device, and read when the result is. Only a rule that is
anybody's function of a matrix is waited for here.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from typing_extensions import override

from gradsurgery.engine.accumulator import (
    Accumulator,
    Update,
    flat_gradient,
    shaped_gradient,
)
from gradsurgery.engine.accumulators import GradientMatrix, widest
from gradsurgery.kernels.network import Combination, Kernels, Seen, sent
from gradsurgery.rules.base import ComponentwiseRule, Rule
from gradsurgery.rules.gramian import GramianRule, weights_of
from gradsurgery.rules.remembering import RememberingRule

# So many domains' gradients wait for a component-wise rule: most data sets have up to four source
# domains, which then are read once.
_HELD = 4


class NetworkGradients(Accumulator):
    """Takes the gradients of whole domains, each held where autograd left it."""

    at_once = False

    def __init__(self, parameters: Sequence[Tensor], kernels: Kernels) -> None:
        super().__init__(parameters)
        self._kernels = kernels
        self._rows: list[list[Tensor | None]] = []
        self._sizes = tuple(parameter.numel() for parameter in parameters)

    @override
    def receive(self, position: int, domain: int, gradient: Tensor | None) -> None:
        raise NotImplementedError("whole domains are received")

    @override
    def receive_domain(self, domain: int, gradients: Sequence[Tensor | None]) -> None:
        self._rows.append(laid_out_as(self._parameters, gradients))

    def _first_gradients(self) -> list[Tensor | None]:
        """For each parameter a gradient that its update may overwrite."""
        return [
            next((gradient for gradient in column if gradient is not None), None)
            for column in zip(*self._rows, strict=True)
        ]


class CombinedGradients(NetworkGradients):
    """For component-wise rules: folds four domains at a time."""

    def __init__(
        self, rule: ComponentwiseRule, parameters: Sequence[Tensor], kernels: Kernels
    ) -> None:
        super().__init__(parameters, kernels)
        self._rule = rule
        self._like = parameters[0].new_empty(0, dtype=widest(parameters))
        self._running: Any = None
        self._flags: list[Tensor] = []
        self._reached: set[int] = set()

    @override
    def receive_domain(self, domain: int, gradients: Sequence[Tensor | None]) -> None:
        if len(self._rows) == _HELD:
            self._fold(domain, self._combination(domain), out=None)
        super().receive_domain(domain, gradients)
        self._reached |= {position for position, g in enumerate(gradients) if g is not None}

    @override
    def finish(self, domains: int, *, poison: bool) -> Update:
        out = self._first_gradients()
        for position in self._reached:
            if out[position] is None:
                out[position] = torch.empty_like(self._parameters[position], requires_grad=False)
        if not self._reached:
            return Update(out)
        combination = self._combination(domains)
        # the gradient of a single loss is its own sum
        stays = domains == 1 and combination == Combination("sum")
        seen = self._fold(domains, combination, out=[None] * len(out) if stays else out)
        return Update(
            out,
            agreeing=seen.agreeing,
            moving=seen.moving,
            sizes=[0 if update is None else update.numel() for update in out],
            flags=self._flags[0] if len(self._flags) == 1 else torch.cat(self._flags),
            owners=seen.owners,
            found=seen.found,
        )

    def _combination(self, domains: int) -> Combination:
        combination = self._rule.combination(domains)
        assert combination is not None  # what this accumulator is chosen for
        return combination

    def _fold(
        self, domains: int, combination: Combination, *, out: list[Tensor | None] | None
    ) -> Seen:
        """Take the gradients that wait into the rule; they are the last where `out` is given."""
        seen = self._kernels.combine(
            combination,
            self._rows,
            like=self._like,
            sizes=self._sizes,
            out=out,
            domains=domains,
            before=self._running,
            random=self._rule.random,
        )
        self._rows, self._running = [], seen.running
        self._flags.append(seen.flags)
        return seen


class WeighedGradients(NetworkGradients):
    """For Gramian rules: keeps the gradients of every domain until the weights are known."""

    def __init__(self, rule: GramianRule, parameters: Sequence[Tensor], kernels: Kernels) -> None:
        super().__init__(parameters, kernels)
        self._rule = rule

    @override
    def finish(self, domains: int, *, poison: bool) -> Update:
        out = self._first_gradients()
        if all(update is None for update in out):
            return Update(out)
        weigh = partial(weights_of, self._rule, on_device=True)
        gramian, seen = self._kernels.weigh(self._rows, self._sizes, weigh, out=out)
        return Update(out, gramian, flags=seen.flags, owners=seen.owners, found=seen.found)


class NetworkMatrix(GradientMatrix):
    """For rules that are called on a matrix: copies all of a domain's gradients into a row."""

    at_once = False

    def __init__(self, rule: Rule, parameters: Sequence[Tensor], kernels: Kernels) -> None:
        super().__init__(rule, parameters)
        self._kernels = kernels
        self._flags: list[Tensor] = []
        self._sizes = tuple(parameter.numel() for parameter in parameters)

    @override
    def receive_domain(self, domain: int, gradients: Sequence[Tensor | None]) -> None:
        laid_out = laid_out_as(self._parameters, gradients)
        self._flags.append(self._kernels.gather(laid_out, self._sizes, out=self._row(domain)))
        self._reached |= {position for position, g in enumerate(gradients) if g is not None}

    @override
    def finish(self, domains: int, *, poison: bool) -> Update:
        flags = torch.stack(self._flags)
        found = flags.any().float()
        if found.item():  # a rule that is anybody's is not shown what is not finite
            nan = torch.full_like(self._matrix[0], torch.nan)
            spoilt = self._updates(nan, range(len(self._sizes)), poison=False)
            return Update(spoilt, flags=flags, found=found)
        update = super().finish(domains, poison=False)
        parts = [part for part in update.gradients if part is not None and part.numel()]
        sums = torch.stack(torch._foreach_norm(parts, ord=torch.inf)) if parts else found
        found = (~sums.isfinite()).any().float()
        return update._replace(flags=flags, found=found, rule=self._rule.name)


class NetworkVerdict(NetworkMatrix):
    """For rules with a memory of every component: the same matrix, which is not waited for."""

    _rule: RememberingRule

    @override
    def finish(self, domains: int, *, poison: bool) -> Update:
        if not self._reached:
            return Update([None] * len(self._parameters))
        flags = torch.stack(self._flags)
        verdict = self._rule.judge(self._matrix[:domains], ~flags.any())
        nan = torch.full_like(verdict.update, torch.nan)
        shown = verdict._replace(update=torch.where(verdict.sound, verdict.update, nan))
        return self._judged(shown)._replace(flags=flags, found=(~verdict.sound).float())

    @override
    def _count(self, marks: Bool[Tensor, " params"]) -> Int64[Tensor, " parameters"]:
        # in few launches, however many parameters there are
        if not len(marks):
            return marks.new_zeros(len(self._sizes), dtype=torch.int64)
        bounds = torch.tensor(self._bounds, device="cpu")
        last, begun = (sent(t, marks.device) for t in ((bounds - 1).clamp(min=0), bounds > 0))
        return (marks.cumsum(0)[last] * begun).diff()


def laid_out_as(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The gradients, whose components lie in memory as those of their parameters do."""
    return [
        gradient
        if gradient is None
        or (
            gradient.layout == torch.strided
            and gradient.stride() == parameter.stride()
            and not gradient.is_neg()
        )
        else shaped_gradient(flat_gradient(gradient, parameter), parameter)
        for gradient, parameter in zip(gradients, parameters, strict=True)
    ]
