"""Fish: gradient matching between domains (Shi et al. 2022)."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from gradsurgery.algorithms.base import Algorithm, Autocast, non_finite
from gradsurgery.algorithms.objectives import Batch
from gradsurgery.algorithms.optimizing import take_step
from gradsurgery.algorithms.passes import DomainPasses
from gradsurgery.engine import BackwardResult, backward
from gradsurgery.errors import NonFiniteError
from gradsurgery.hyperparameters import Hyperparameter, checked_values
from gradsurgery.rules import Sum


class Fish(Algorithm):
    """θ ← θ + ε (θ̃ − θ), where θ̃ is θ after one optimiser step on each domain in a random order,

    which in the mean raises the inner products of the domains' gradients. The run's optimiser
    takes the inner steps and keeps its state. The steps follow one another, so that there are no
    D gradients at one θ for a rule to combine.

    Source: Shi et al., "Gradient Matching for Domain Generalization", ICLR 2022, algorithm 1; ε as
    `meta_lr` in DomainBed.
    """

    name: ClassVar[str] = "fish"
    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (
        Hyperparameter("meta_lr", 0.5, "step size ε of the outer step", high=1.0, open_low=True),
    )

    minimum_domains = 2

    def __init__(self, generator: torch.Generator, **given: Any) -> None:
        self.values = checked_values(self.name, self.hyperparameters, given)
        self._generator = generator

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
        """One inner step per domain, then the outer step."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        before = [p.detach().clone() for p in parameters]
        forward = DomainPasses(model, autocast)
        generator = self._generator
        order = torch.randperm(len(batches), generator=generator, device=generator.device).tolist()
        losses = [torch.empty(())] * len(batches)
        for domain in order:
            images, labels = batches[domain]
            optimizer.zero_grad(set_to_none=True)
            loss = cross_entropy(next(forward([images])), labels)
            try:
                result = backward([loss], model.named_parameters(), Sum(), scaler=scaler)
            except NonFiniteError as error:
                raise non_finite(error, f"domain {domain}", domain) from error
            losses[domain] = result.losses[0]
            take_step(optimizer, scaler)
        with torch.no_grad():
            for parameter, start in zip(parameters, before, strict=True):
                parameter.copy_(start.lerp_(parameter, self.values["meta_lr"]))
        return BackwardResult(torch.stack(losses), agreeing=None, cosines=None)
