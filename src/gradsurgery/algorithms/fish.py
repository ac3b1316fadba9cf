"""Fish: gradient matching between domains (Shi et al. 2022)."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from gradsurgery.algorithms.base import Algorithm, Step, non_finite
from gradsurgery.algorithms.forward import Forward, risk
from gradsurgery.engine import BackwardResult, backward
from gradsurgery.errors import NonFiniteError
from gradsurgery.hyperparameters import DOMAINBED, Hyperparameter, checked_values
from gradsurgery.rules import Sum


class Fish(Algorithm):
    """θ ← θ + ε (θ̃ − θ), where θ̃ is θ after one optimiser step on each domain in a random order,

    which in the mean raises the inner products of the domains' gradients. The run's optimiser
    takes the inner steps and keeps its state. The steps follow one another, so that there are no
    D gradients at one θ for a rule to combine. Buffers, such as batch normalisation's running
    statistics, stay as the inner steps leave them; DomainBed interpolates them too. Where a step
    fails, parameters and buffers are as they were before it, and the optimiser's state is not.

    Source: Shi et al., "Gradient Matching for Domain Generalization", ICLR 2022, algorithm 1; ε as
    `meta_lr` in DomainBed.
    """

    name: ClassVar[str] = "fish"
    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (
        Hyperparameter(
            "meta_lr",
            0.5,
            "step size ε of the outer step",
            high=1.0,
            open_low=True,
            source=DOMAINBED,
        ),
    )

    minimum_domains = 2
    has_one_update = False

    def __init__(self, generator: torch.Generator, **given: Any) -> None:
        self.values = checked_values(self.name, self.hyperparameters, given)
        self._generator = generator

    @override
    def take(self, step: Step) -> BackwardResult:
        parameters = [p for p in step.model.parameters() if p.requires_grad]
        before = [p.detach().clone() for p in parameters]
        buffers = [(buffer, buffer.clone()) for buffer in step.model.buffers()]
        try:
            losses = self._inner_steps(step)
        except BaseException:
            with torch.no_grad():
                for value, start in [*zip(parameters, before, strict=True), *buffers]:
                    value.copy_(start)
            raise
        with torch.no_grad():
            for parameter, start in zip(parameters, before, strict=True):
                parameter.copy_(start.lerp_(parameter, self.values["meta_lr"]))
        return BackwardResult(torch.stack(losses))

    def _inner_steps(self, step: Step) -> list[Tensor]:
        """One step of the optimiser on each domain; their losses."""
        forward = Forward(step.model, step.autocast, lacking=self.lacking)
        generator, domains = self._generator, len(step.batches)
        order = torch.randperm(domains, generator=generator, device=generator.device).tolist()
        losses = [torch.empty(())] * domains
        for domain in order:
            images, labels = step.batches[domain]
            step.optimizer.zero_grad(set_to_none=True)
            logits = next(forward([images], of=[(domain,)]))
            loss = risk(logits, labels, self.label_smoothing, self.class_weights)
            try:
                named = step.model.named_parameters()
                result = backward([loss], named, Sum(), scaler=step.scaler)
            except NonFiniteError as error:
                raise non_finite(error, f"domain {domain}", domain) from error
            losses[domain] = result.losses[0]
            step.update_parameters(result)
        return losses
