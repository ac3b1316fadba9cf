"""An objective and a rule: the first decides the losses, the second combines their gradients."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from gradsurgery.algorithms.base import Algorithm, Autocast
from gradsurgery.algorithms.objectives import Batch, Objective
from gradsurgery.algorithms.passes import DomainPasses, PooledPass
from gradsurgery.engine import BackwardResult, backward
from gradsurgery.errors import NonFiniteError
from gradsurgery.rules import Mean, Rule


class Combined(Algorithm):
    """rule(∇L_1, …, ∇L_D) for the D losses of the objective.

    With the rule `mean` the update is the gradient of the mean loss, for which one pass over the
    pooled batch does: Deep-All is `erm` with `mean`. `per_domain_passes` makes one pass per domain
    even so, as the other rules do, so that batch normalisation sees each domain by itself.
    """

    def __init__(
        self, objective: Objective, rule: Rule, *, per_domain_passes: bool = False
    ) -> None:
        self.objective = objective
        self.rule = rule
        self.minimum_domains = max(objective.minimum_domains, rule.minimum_domains)
        self.pooled = isinstance(rule, Mean) and objective.pools and not per_domain_passes

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
        if self.pooled:
            result = self._pooled_backward(model, batches, step, scaler, autocast)
        else:
            losses = self.objective.losses(DomainPasses(model, autocast), batches, step)
            result = backward(losses, model.named_parameters(), self.rule, scaler=scaler)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
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
            losses = self.objective.losses(PooledPass(model, autocast), batches, step)
            total = torch.stack([loss for loss in losses if isinstance(loss, Tensor)])
            seen.append(total.detach())
            yield total.mean()

        try:
            result = backward(mean_loss(), model.named_parameters(), self.rule, scaler=scaler)
        except NonFiniteError as error:
            bad = [d for d, finite in enumerate(seen[0].isfinite().tolist()) if not finite]
            raise NonFiniteError(
                str(error), domain=bad[0] if bad else None, parameter=error.parameter
            ) from error
        return replace(result, losses=seen[0])

    def restarts_optimizer(self, step: int) -> bool:
        """Where the objective says so."""
        return self.objective.restarts_optimizer(step)

    def state_dict(self) -> dict[str, Tensor]:
        """The objective's and the rule's."""
        parts = {"objective": self.objective.state_dict(), "rule": self.rule.state_dict()}
        return {f"{part}.{k}": v for part, state in parts.items() for k, v in state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go back to a state of `state_dict`."""

        def of(part: str) -> dict[str, Tensor]:
            start = f"{part}."
            return {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}

        self.objective.load_state_dict(of("objective"))
        self.rule.load_state_dict(of("rule"))
