"""An objective and a rule: the first decides the losses, the second combines their gradients."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from gradsurgery.algorithms.base import Algorithm, Step, non_finite
from gradsurgery.algorithms.forward import Forward
from gradsurgery.algorithms.objectives import Objective
from gradsurgery.algorithms.objectives.base import DomainLosses
from gradsurgery.engine import BackwardResult, backward, check_losses, checked_loss
from gradsurgery.errors import ArgumentError, NonFiniteError
from gradsurgery.rules import RULES, Mean, Rule

BatchNorm = Literal["frozen", "per-domain", "pooled"]


class Combined(Algorithm):
    """rule(∇L_1, …, ∇L_D) for the D losses of the objective.

    With the rule `mean` the update is the gradient of the mean loss, for which one pass over the
    pooled batch does: Deep-All is `erm` with `mean`. Other rules need the D gradients, from one
    pass per domain. The mean is that of the domains' means: where their batches are of different
    sizes every domain weighs the same, not every image.

    batch_norm: what batch normalisation in training mode, if the model has any, is to see.
        "per-domain" makes one forward pass per domain for every rule. "pooled" makes one over all
        domains for every rule, whose graph is kept for D backward passes: memory of the pooled
        batch, and each backward pass goes through all of its images. "frozen" makes whichever
        passes are the cheapest.
    """

    def __init__(
        self, objective: Objective, rule: Rule, *, batch_norm: BatchNorm = "frozen"
    ) -> None:
        self.objective = objective
        self.rule = rule
        self.minimum_domains = max(objective.minimum_domains, rule.minimum_domains)
        self._averages = type(rule) is Mean and batch_norm != "per-domain"
        self._shared = batch_norm == "pooled"

    @override
    def __repr__(self) -> str:
        return f"Combined({self.objective!r}, {self.rule!r})"

    @override
    def take(self, step: Step) -> BackwardResult:
        remembered, taken = dict(self.objective.state), False
        try:
            result = self._backward(step)
            taken = step.update_parameters(result)
        finally:
            if not taken:  # nothing is learned of a step that the network does not take
                self.objective.state = remembered
        return result

    def _backward(self, step: Step) -> BackwardResult:
        step.optimizer.zero_grad(set_to_none=True)
        if self.restarts_optimizer(step.number):
            step.optimizer.state.clear()
        shared = self._averages or self._shared
        forward = Forward(
            step.model,
            step.autocast,
            shared=shared,
            lacking=self.lacking,
            trains_features=self.objective.shapes_features and not self.features_may_stay,
        )
        if self._averages:
            result = self._mean_backward(forward, step)
        else:
            with closing(self._losses(forward, step)) as losses:
                result = backward(
                    list(losses) if shared else losses,
                    step.named,
                    self.rule,
                    scaler=step.scaler,
                    defer_check=True,
                    no_say=self.no_say,
                )
        if forward.values is not None:
            result = replace(result, checked=forward.values)
        return result

    def _losses(self, forward: Forward, step: Step) -> DomainLosses:
        losses: Any = self.objective.losses(forward, step.batches, step.number)
        if not isinstance(losses, Generator):
            raise ArgumentError(
                f"the method losses of the objective {self.objective.name} yields the domains' "
                f"losses one by one, found a {type(losses).__name__}; write it with yield"
            )
        return losses

    def _mean_backward(self, forward: Forward, step: Step) -> BackwardResult:
        """One pass over all images, and one backward pass of the mean loss."""
        seen: list[Tensor] = []

        def mean_loss() -> Iterator[Tensor]:
            losses = enumerate(self._losses(forward, step))
            total = torch.stack([checked_loss(loss, domain).reshape(()) for domain, loss in losses])
            seen.append(total.detach())
            yield total.mean()

        try:
            result = backward(
                mean_loss(), step.named, self.rule, scaler=step.scaler, defer_check=True
            )
        except NonFiniteError as error:
            if not seen:
                raise
            check_losses(seen[0])  # raises for the domain whose loss it is
            raise non_finite(error, "the pooled domains", domain=None) from error
        return replace(result, losses=seen[0], pooled=True)

    @override
    def smooth_labels(self, label_smoothing: float) -> None:
        if label_smoothing and not self.objective.smooths_labels:
            raise ArgumentError(
                f"{self.objective.name} takes its cross-entropies by itself, where label smoothing "
                "cannot reach; take them from self.risk and set smooths_labels, or leave it out"
            )
        self.objective.label_smoothing = label_smoothing

    @override
    def treat_classes(
        self, weights: Tensor | None, lacking: Tensor | None, heads: Sequence[str] = ()
    ) -> None:
        super().treat_classes(weights, lacking, heads)
        self.objective.class_weights = weights

    @override
    def stage(self, step: int) -> Any:
        built_in = type(self.rule) in RULES.values()  # others may change from step to step
        return self.objective.stage(step) if built_in else None

    @override
    def restarts_optimizer(self, step: int) -> bool:
        return self.objective.restarts_optimizer(step)

    @override
    def idle_reason(self, steps: int) -> str | None:
        return self.objective.idle_reason(steps)

    @override
    def state_dict(self) -> dict[str, Tensor]:
        return joined_states(objective=self.objective.state_dict(), rule=self.rule.state_dict())

    @override
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        parts = split_states(state, ("objective", "rule"))
        self.objective.load_state_dict(parts["objective"])
        self.rule.load_state_dict(parts["rule"])


def joined_states(**parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The states of a method's parts in one, by "part.name"."""
    return {f"{part}.{k}": v for part, state in parts.items() for k, v in state.items()}


def split_states(
    state: Mapping[str, Tensor], parts: tuple[str, ...]
) -> dict[str, dict[str, Tensor]]:
    """The inverse of `joined_states`; raises `ArgumentError` on a key of no part."""
    states: dict[str, dict[str, Tensor]] = {part: {} for part in parts}
    for key, value in state.items():
        part, _, name = key.partition(".")
        if part not in states:
            raise ArgumentError(
                f"the state of a method is of its {' and its '.join(parts)}, found {key!r}; load "
                "the state of the same method"
            )
        states[part][name] = value
    return states
