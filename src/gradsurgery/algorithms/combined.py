"""An objective and a rule: the first decides the losses, the second combines their gradients."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from gradsurgery.algorithms.base import Algorithm, Autocast, non_finite
from gradsurgery.algorithms.objectives import Batch, Objective
from gradsurgery.algorithms.objectives.base import values_of
from gradsurgery.algorithms.optimizing import take_step
from gradsurgery.algorithms.passes import DomainPasses, PooledPass
from gradsurgery.engine import BackwardResult, backward
from gradsurgery.errors import ArgumentError, NonFiniteError
from gradsurgery.rules import Mean, Rule

Passes = Literal["auto", "separate", "pooled"]

FASTER_POOLED = 8
"""Up to so many images per domain one pass over all is the faster (benchmarks/pooled_pass.py).

A pass has a cost that does not depend on its images, e.g. reading AlexNet's 228 MB of weights. From
32 images on that is lost in the rest, and one pass keeps D times the activations.
"""


class Combined(Algorithm):
    """rule(∇L_1, …, ∇L_D) for the D losses of the objective.

    With the rule `mean` the update is the gradient of the mean loss, for which one pass over the
    pooled batch does: Deep-All is `erm` with `mean`. Other rules need the D gradients, from one
    pass per domain or from one for all (`gradsurgery.PooledModel`).

    passes: "separate" makes one pass per domain for every rule, so that batch normalisation sees
        each domain by itself. "pooled" makes one for all. "auto" makes one for `mean`, and for
        other rules the faster of the two where both are exact: one for all with no more than
        `FASTER_POOLED` images per domain, no batch normalisation in training mode, and a network
        whose layers `PooledModel` knows.

    Raises `ArgumentError` for "pooled" with an objective that needs passes of its own.
    """

    def __init__(self, objective: Objective, rule: Rule, *, passes: Passes = "auto") -> None:
        self.objective = objective
        self.rule = rule
        self.passes = passes
        self.minimum_domains = max(objective.minimum_domains, rule.minimum_domains)
        self.pooled = isinstance(rule, Mean) and objective.pools and passes != "separate"
        self._records = objective.pools and not objective.reads_gradients and not self.pooled
        if passes == "pooled" and not (self.pooled or self._records):
            raise ArgumentError(
                f"{objective.name} needs passes of its own, found passes 'pooled'; use 'auto' or "
                "'separate'"
            )

    def step(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        optimizer: torch.optim.Optimizer,
        *,
        step: int,
        scaler: torch.amp.GradScaler | None = None,
        autocast: Autocast = nullcontext,
    ) -> BackwardResult:
        """Set every parameter's gradient, and step the optimiser."""
        optimizer.zero_grad(set_to_none=True)
        if self.restarts_optimizer(step):
            optimizer.state.clear()
        if self.pooled:
            result = self._pooled_backward(model, batches, step, scaler, autocast)
        else:
            passes = DomainPasses(model, autocast, scaler)
            with closing(self.objective.losses(passes, batches, step)) as losses:
                result = backward(losses, model.named_parameters(), self.rule, scaler=scaler)
        take_step(optimizer, scaler)
        return result

    def _pooled_backward(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        step: int,
        scaler: torch.amp.GradScaler | None,
        autocast: Autocast,
    ) -> BackwardResult:
        """One pass over all images, and one backward pass of the mean loss."""
        seen: list[Tensor] = []

        def mean_loss() -> Iterator[Tensor]:
            losses = self.objective.losses(PooledPass(model, autocast, scaler), batches, step)
            total = torch.stack([loss for loss in losses if isinstance(loss, Tensor)])
            seen.append(total.detach())
            yield total.mean()

        try:
            result = backward(mean_loss(), model.named_parameters(), self.rule, scaler=scaler)
        except NonFiniteError as error:
            if not seen:
                raise
            values_of(seen[0].unbind())  # raises for the domain whose loss it is
            raise non_finite(error, "the pooled domains", domain=None) from error
        return replace(result, losses=seen[0])

    def restarts_optimizer(self, step: int) -> bool:
        """Where the objective says so."""
        return self.objective.restarts_optimizer(step)

    def idle_steps(self) -> int:
        """As the objective says."""
        return self.objective.idle_steps()

    def state_dict(self) -> dict[str, Tensor]:
        """The objective's and the rule's."""
        parts = {"objective": self.objective.state_dict(), "rule": self.rule.state_dict()}
        return {f"{part}.{k}": v for part, state in parts.items() for k, v in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a state of `state_dict`; raises `ArgumentError` on any other keys."""
        parts: dict[str, dict[str, Tensor]] = {"objective": {}, "rule": {}}
        for key, value in state.items():
            part, _, name = key.partition(".")
            if part not in parts:
                raise ArgumentError(
                    f"the state of a method is of its objective and its rule, found {key!r}; load "
                    "the state of the same method"
                )
            parts[part][name] = value
        self.objective.load_state_dict(parts["objective"])
        self.rule.load_state_dict(parts["rule"])
