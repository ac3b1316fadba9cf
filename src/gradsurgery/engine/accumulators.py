"""What is kept of the domains' gradients until the rule has its update, for each kind of rule."""

from abc import abstractmethod
from collections.abc import Sequence
from functools import reduce
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from gradsurgery.engine.accumulator import Accumulator, Update, check_form, not_finite_update
from gradsurgery.errors import ArgumentError
from gradsurgery.kernels.network import kernels_for, sent
from gradsurgery.rules.base import (
    ComponentwiseRule,
    Rule,
    State,
    beyond_precision,
    largest_size,
    only_call_is_own,
)
from gradsurgery.rules.gramian import GramianRule, gramian_of, scale_of, weighted_sum, weights_of
from gradsurgery.rules.remembering import RememberingRule, Verdict


class SingleGradients(Accumulator):
    """Receives one gradient after the other, and looks whether it is finite."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters)
        # the size of the largest component by domain and position, NaN where there is one
        self._largest: dict[tuple[int, int], Tensor] = {}
        self._kept: set[int] = set()

    @override
    def receive(self, position: int, domain: int, gradient: Tensor | None) -> None:
        if gradient is None:
            self._add(position, domain, None)
            return
        flat = flat_gradient(gradient, self._parameters[position])
        if flat.numel():
            self._largest[domain, position] = largest_size(flat)
        self._add(position, domain, flat)

    @abstractmethod
    def _add(self, position: int, domain: int, gradient: Float[Tensor, " params"] | None) -> None:
        """Keep what the rule needs of the gradient."""

    def _own(self, gradient: Float[Tensor, " params"]) -> Float[Tensor, " params"]:
        """The gradient to keep and write to: a copy where another that is kept has its memory.

        Autograd gives two parameters the same memory where they are added up as views.
        """
        memory = gradient.untyped_storage().data_ptr()
        if memory in self._kept and gradient.numel():
            return gradient.clone()
        self._kept.add(memory)
        return gradient

    @override
    def first_non_finite(self) -> tuple[int, int] | None:
        if not self._largest:
            return None
        finite = torch.stack(list(self._largest.values())).isfinite().tolist()
        found = [where for where, good in zip(self._largest, finite, strict=True) if not good]
        return min(found, default=None)

    @property
    @override
    def largest(self) -> float:
        if not self._largest:
            return 0.0
        return float(torch.stack(list(self._largest.values())).max())

    def _shaped(self, flat: Tensor, position: int, *, poison: bool) -> Tensor:
        """The flat update in the parameter's shape."""
        for (_, at), largest in self._largest.items() if poison else ():
            if at == position:
                flat.add_(largest * 0)  # 0, or NaN where one is not finite
        return shaped_gradient(flat, self._parameters[position])


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
        return Update(flat, agreeing=counts[0], zeros=counts[1], sizes=sizes)

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
    """For Gramian rules: keeps the gradients of every domain until the weights are known."""

    def __init__(self, rule: GramianRule, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters)
        self._rule = rule
        self._columns: list[list[Tensor | None]] = [[] for _ in parameters]

    def finish(self, domains: int, *, poison: bool) -> Update:
        """Σ_d w_d g_d with the rule's weights, in the memory of the first gradient."""
        columns = [self._filled(position) for position in range(len(self._parameters))]
        reached = [column for column in columns if column]
        if not reached:
            return Update([None] * len(columns))
        scale = scale_of(self.largest)
        grams = [gramian_of(column, scale=scale) for column in reached]
        gramian = torch.stack(grams).sum(0).cpu()
        weights = weights_of(self._rule, gramian) if gramian.isfinite().all() else gramian[0]
        gradients = [
            self._shaped(weighted_sum(column, weights, out=column[0]), position, poison=poison)
            if column
            else None
            for position, column in enumerate(columns)
        ]
        return Update(gradients, gramian=gramian)

    def _add(self, position: int, domain: int, gradient: Float[Tensor, " params"] | None) -> None:
        self._columns[position].append(None if gradient is None else self._own(gradient))

    def _filled(self, position: int) -> list[Tensor]:
        """One parameter's gradients, zeros where a domain does not reach it; [] where none does."""
        column, parameter = self._columns[position], self._parameters[position]
        if all(gradient is None for gradient in column):
            return []
        return [parameter.new_zeros(parameter.numel()) if g is None else g for g in column]


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
        device = verdict.update.device
        bounds, counted = (
            sent(torch.tensor(each, device="cpu"), device) for each in (self._bounds, reached)
        )
        counts = [  # in few launches, however many parameters there are
            torch.nn.functional.pad(marks.cumsum(0), (1, 0))[bounds].diff() * counted
            for marks in (verdict.agreeing, verdict.zero)
        ]
        updates = self._updates(verdict.update, range(len(reached)), poison=False)
        sizes = [0 if update is None else update.numel() for update in updates]
        return Update(updates, agreeing=counts[0], zeros=counts[1], sizes=sizes)

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


def flat_gradient(gradient: Tensor, parameter: Tensor) -> Float[Tensor, " params"]:
    """The gradient's components in the order in which `parameter` lies in memory.

    A view where the two are laid out alike, which autograd sees to, and a copy elsewhere. How far
    apart the components of a dimension of length 1 would be says nothing.
    """
    if gradient.layout != torch.strided:
        raise ArgumentError(
            f"gradients are dense, found {gradient.layout}; build Embedding with sparse=False"
        )
    lengths = zip(gradient.stride(), parameter.stride(), parameter.shape, strict=True)
    if any(own != other for own, other, size in lengths if size != 1):
        gradient = torch.empty_like(parameter, requires_grad=False).copy_(gradient)
    gradient = gradient.resolve_neg()  # what is imaginary has its minus sign outside its memory
    if gradient.is_contiguous():
        return gradient.view(-1)
    return gradient.as_strided((gradient.numel(),), (1,))


def shaped_gradient(flat: Float[Tensor, " params"], parameter: Tensor) -> Tensor:
    """The inverse of `flat_gradient`: the same memory in the parameter's shape and layout."""
    return flat.as_strided(parameter.size(), parameter.stride())
