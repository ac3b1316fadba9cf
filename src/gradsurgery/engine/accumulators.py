"""What is kept of the domains' gradients until the rule has its update, for each kind of rule."""

from collections.abc import Sequence
from functools import cached_property, reduce
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from typing_extensions import override

from gradsurgery.engine.accumulator import (
    Accumulator,
    SingleGradients,
    Update,
    check_form,
    flat_gradient,
    not_finite_update,
)
from gradsurgery.errors import ArgumentError
from gradsurgery.kernels.network import kernels_for, sent
from gradsurgery.rules.base import (
    ComponentwiseRule,
    Rule,
    State,
    beyond_precision,
    only_call_is_own,
)
from gradsurgery.rules.gramian import (
    GramianRule,
    gramian_of,
    largest_of_sum,
    scale_of,
    weighted_sum,
    weights_of,
)
from gradsurgery.rules.remembering import RememberingRule, Verdict


def accumulator_for(rule: Rule, parameters: Sequence[Tensor]) -> Accumulator:
    """The accumulator that needs the least memory for the rule, or the fewest kernels."""
    if len(devices := {parameter.device for parameter in parameters}) > 1:
        raise ArgumentError(
            "the gradients of all parameters are compared in one place, found parameters on "
            f"{', '.join(sorted(map(str, devices)))}; put the model on one device"
        )
    alone = only_call_is_own(rule)
    if (kernels := kernels_for(parameters)) is not None:
        from gradsurgery.engine import network

        if isinstance(rule, RememberingRule) and not alone:
            return network.NetworkVerdict(rule, parameters, kernels)
        if alone or not isinstance(rule, ComponentwiseRule | GramianRule):
            return network.NetworkMatrix(rule, parameters, kernels)
        if isinstance(rule, GramianRule):
            return network.WeighedGradients(rule, parameters, kernels)
        if rule.combination(2) is not None:
            return network.CombinedGradients(rule, parameters, kernels)
    kinds: list[tuple[Any, type[Any]]] = [
        (ComponentwiseRule, FoldedGradients),
        (GramianRule, StoredGradients),
        (RememberingRule, JudgedMatrix),
    ]
    for kind, accumulator in () if alone else kinds:
        if isinstance(rule, kind):
            chosen: Accumulator = accumulator(rule, parameters)
            return chosen
    return GradientMatrix(rule, parameters)


def widest(tensors: Sequence[Tensor]) -> torch.dtype:
    """The precision that holds those of all the tensors."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


class FoldedGradients(SingleGradients):
    """For component-wise rules: folds a gradient as it comes, in the memory of one gradient."""

    def __init__(self, rule: ComponentwiseRule, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters)
        self._rule = rule
        self._states: list[State | None] = [None] * len(parameters)
        self._totals = [0.0] * len(parameters)  # of the domains' largest components

    def finish(self, domains: int, *, poison: bool) -> Update:
        """The rule's update over the whole network."""
        flat: list[Tensor | None] = [None] * len(self._parameters)
        reached = [position for position, state in enumerate(self._states) if state is not None]
        states = [state for state in self._states if state is not None]
        if not states:
            return Update(flat)
        consensus = self._rule.finish(states, domains)
        for position, update in zip(reached, consensus.updates, strict=True):
            narrow = update.to(self._parameters[position].dtype)
            flat[position] = self._shaped(narrow, position, poison=poison)
        if consensus.counts is None or consensus.zeros is None:
            return Update(flat)
        counts = consensus.counts.new_zeros(2, len(self._parameters))
        counts[:, reached] = torch.stack([consensus.counts, consensus.zeros])
        sizes = [0 if update is None else update.numel() for update in flat]
        moving = sent(torch.tensor(sizes, device="cpu"), counts.device) - counts[1]
        return Update(flat, agreeing=counts[0], moving=moving, sizes=sizes)

    def _add(self, position: int, domain: int, gradient: Float[Tensor, " params"] | None) -> None:
        gradient = None if gradient is None else gradient.to(self._precision(position, domain))
        state = self._states[position]
        if state is not None:
            added = self._zero(position, state[0].dtype) if gradient is None else gradient
            if added.dtype != state[0].dtype:
                state = tuple(t.to(added.dtype) if t.is_floating_point() else t for t in state)
            self._states[position] = self._rule.fold(state, added)
        elif gradient is not None:
            self._states[position] = self._started(position, domain, gradient)

    def _precision(self, position: int, domain: int) -> torch.dtype:
        """Of the state with this domain's gradient in it; it never gets narrower."""
        largest = self._largest.get((domain, position))
        if largest is not None and largest.device.type == "cpu":  # elsewhere this would wait
            self._totals[position] += largest.item()
        dtype = self._parameters[position].dtype
        return self._rule.precision(dtype, self._totals[position])

    def _started(self, position: int, domain: int, gradient: Float[Tensor, " params"]) -> State:
        """The state with `gradient` in it, after zeros for the domains that did not reach it."""
        if domain == 0:
            return self._rule.start(self._own(gradient))
        state = self._rule.start(torch.zeros_like(gradient))
        for _ in range(1, domain):
            state = self._rule.fold(state, self._zero(position, gradient.dtype))
        return self._rule.fold(state, gradient)

    def _zero(self, position: int, dtype: torch.dtype) -> Float[Tensor, " params"]:
        parameter = self._parameters[position]
        return parameter.new_zeros((), dtype=dtype).expand(parameter.numel())


class StoredGradients(SingleGradients):
    """For Gramian rules: keeps the gradients of every domain until the weights are known.

    Products of float32 are finite where the gradients are, and tell so; float64 is looked at first.
    """

    def __init__(self, rule: GramianRule, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters)
        self._rule = rule
        self._columns: list[list[Tensor | None]] = [[] for _ in parameters]
        self._looks = any(parameter.dtype == torch.float64 for parameter in parameters)
        self._bound = 0.0

    def finish(self, domains: int, *, poison: bool) -> Update:
        """Σ_d w_d g_d with the rule's weights, in the memory of the first gradient."""
        gradients: list[Tensor | None] = [None] * len(self._parameters)
        if not self._products:
            return Update(gradients)
        gramian = torch.stack(list(self._products.values())).sum(0).cpu()
        finite = bool(gramian.isfinite().all())
        unknown = torch.full_like(gramian[0], torch.nan)
        weights = weights_of(self._rule, gramian) if finite else unknown
        self._bound = largest_of_sum(gramian, weights) / self._scale
        for position, column in self._filled.items():
            flat = weighted_sum(column, weights, out=column[0])
            gradients[position] = self._shaped(flat, position, poison=poison)
        return Update(gradients, gramian=gramian)

    @override
    def receive(self, position: int, domain: int, gradient: Tensor | None) -> None:
        if gradient is None or self._looks:
            super().receive(position, domain, gradient)
        else:
            self._add(position, domain, flat_gradient(gradient, self._parameters[position]))

    @override
    def first_non_finite(self) -> tuple[int, int] | None:
        if self._looks:
            return super().first_non_finite()
        products = self._products.items()
        spoilt = [(~gram.diagonal().isfinite()).nonzero().view(-1) for _, gram in products]
        found = zip((position for position, _ in products), spoilt, strict=True)
        return min(((int(d), at) for at, ds in found for d in ds), default=None)

    @override
    def bound(self, domains: int) -> float:
        return self._bound

    @cached_property
    def _products(self) -> dict[int, Float[Tensor, "domains domains"]]:
        """The Gramian of each parameter that a domain reaches, by position."""
        columns = self._filled.items()
        return {at: gramian_of(column, scale=self._scale) for at, column in columns}

    @cached_property
    def _scale(self) -> float:
        return scale_of(self._size())

    def _add(self, position: int, domain: int, gradient: Float[Tensor, " params"] | None) -> None:
        self._columns[position].append(None if gradient is None else self._own(gradient))

    @cached_property
    def _filled(self) -> dict[int, list[Tensor]]:
        """The gradients of each parameter that a domain reaches, zeros for domains that do not."""
        return {
            position: [parameter.new_zeros(parameter.numel()) if g is None else g for g in column]
            for position, (parameter, column) in enumerate(
                zip(self._parameters, self._columns, strict=True)
            )
            if any(gradient is not None for gradient in column)
        }


# How many domains come is known at the end. Most sets have up to four source domains; a row that
# stays unused costs address space and no memory on a CPU.
_FIRST_ROWS = 4


class GradientMatrix(SingleGradients):
    """For rules that are called on a matrix: writes every gradient into its place in a row.

    With D domains and P components the memory is D × P and the largest parameter's gradient, D
    taken as 4 below that; more domains double the matrix, which then is there twice for a moment.
    """

    def __init__(self, rule: Rule, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters)
        self._rule = rule
        sizes = [parameter.numel() for parameter in parameters]
        self._bounds = list(accumulate(sizes, initial=0))
        self._reached: set[int] = set()
        self._matrix = parameters[0].new_empty(
            _FIRST_ROWS, self._bounds[-1], dtype=widest(parameters)
        )

    def finish(self, domains: int, *, poison: bool) -> Update:
        """The rule's update, split into the parameters."""
        if not self._reached:
            return Update([None] * len(self._parameters))
        reached = sorted(self._reached)
        update = self._update(domains, [self._span(position) for position in reached])
        return Update(self._updates(update, reached, poison=poison))

    def _updates(
        self, update: Float[Tensor, " params"], positions: Sequence[int], *, poison: bool
    ) -> list[Tensor | None]:
        """The update of the parameters at `positions`, split into those that are reached."""
        gradients: list[Tensor | None] = [None] * len(self._parameters)
        sizes = [self._parameters[position].numel() for position in positions]
        for dtype in {self._parameters[position].dtype for position in self._reached}:
            parts = update.to(dtype).split(sizes)  # all at once: few launches on an accelerator
            for position, part in zip(positions, parts, strict=True):
                if position in self._reached and self._parameters[position].dtype == dtype:
                    gradients[position] = self._shaped(part, position, poison=poison)
        return gradients

    def _judged(self, verdict: Verdict) -> Update:
        """What a rule with a memory says of the whole network, split into the parameters."""
        reached = [position in self._reached for position in range(len(self._parameters))]
        counted = sent(torch.tensor(reached, device="cpu"), verdict.update.device)
        counts = [self._count(marks) * counted for marks in (verdict.agreeing, ~verdict.zero)]
        updates = self._updates(verdict.update, range(len(reached)), poison=False)
        sizes = [0 if update is None else update.numel() for update in updates]
        return Update(updates, agreeing=counts[0], moving=counts[1], sizes=sizes)

    def _count(self, marks: Bool[Tensor, " params"]) -> Int64[Tensor, " parameters"]:
        """How many components of each parameter are marked."""
        spans = map(self._span, range(len(self._parameters)))
        return torch.stack([marks[span].count_nonzero() for span in spans])

    def _add(self, position: int, domain: int, gradient: Float[Tensor, " params"] | None) -> None:
        place = self._row(domain)[self._span(position)]
        if gradient is None:
            place.zero_()
        else:
            place.copy_(gradient)
            self._reached.add(position)

    def _row(self, domain: int) -> Float[Tensor, " params"]:
        if domain == len(self._matrix):
            grown = self._matrix.new_empty(2 * domain, self._bounds[-1])
            grown[:domain] = self._matrix
            self._matrix = grown
        return self._matrix[domain]

    def _span(self, position: int) -> slice:
        return slice(self._bounds[position], self._bounds[position + 1])

    def _update(self, domains: int, spans: list[slice]) -> Float[Tensor, " params"]:
        matrix = self._matrix[:domains]
        if len(spans) < len(self._parameters):
            # what no domain reaches does not take part
            matrix = torch.cat([matrix[:, span] for span in spans], 1)
        if self.first_non_finite() is not None:
            return matrix[0]  # only where a loss scaler is there to skip the step
        update = self._rule.of_finite(matrix)
        check_form(update, self._rule.name, matrix)
        if self.at_once and not update.isfinite().all():
            raise not_finite_update(self._rule.name)
        # the rule may keep what it returns, and its memory may be laid out in any way
        copy: Tensor = update.detach().clone(memory_format=torch.contiguous_format)
        return copy


class JudgedMatrix(GradientMatrix):
    """For rules with a memory of every component: the matrix of the whole network."""

    _rule: RememberingRule

    @override
    def finish(self, domains: int, *, poison: bool) -> Update:
        if not self._reached:
            return Update([None] * len(self._parameters))
        finite = torch.tensor(self.first_non_finite() is None, device=self._matrix.device)
        verdict = self._rule.judge(self._matrix[:domains], finite)
        if not verdict.sound and not poison:
            raise beyond_precision(dtype=self._matrix.dtype)
        if not verdict.sound:  # a loss scaler is there to skip the step
            verdict.update.fill_(torch.nan)
        return self._judged(verdict)
