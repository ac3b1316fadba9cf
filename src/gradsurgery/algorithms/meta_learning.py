"""MLDG and Fish, whose step takes inner steps of an optimiser: first-order meta-learning."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from gradsurgery.algorithms.base import Algorithm, Step, non_finite
from gradsurgery.algorithms.combined import joined_states, split_states
from gradsurgery.algorithms.forward import Forward, risk
from gradsurgery.algorithms.objectives.mixup import random_ring
from gradsurgery.engine import (
    Accumulator,
    BackwardResult,
    backward,
    check_losses,
    gradients_of,
    write_update,
)
from gradsurgery.errors import ArgumentError, NonFiniteError
from gradsurgery.hyperparameters import DOMAINBED, Hyperparameter, checked_values
from gradsurgery.rules import Rule, Sum

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Gradients = list[Tensor | None]

_EXAMPLE = "give e.g. lambda parameters: torch.optim.Adam(parameters, lr=1e-4)"


class MetaLearning(Algorithm):
    """An algorithm whose step takes inner steps, on one domain after the other."""

    name: ClassVar[str]
    hyperparameters: ClassVar[tuple[Hyperparameter, ...]]
    minimum_domains = 2

    def __init__(self, generator: torch.Generator, **given: Any) -> None:
        self.values = checked_values(self.name, self.hyperparameters, given)
        self._generator = generator

    def _risk(self, step: Step, domain: int) -> Tensor:
        """The risk of a domain where the model is now."""
        images, labels = step.batches[domain]
        forward = Forward(step.model, step.autocast, lacking=self.lacking)
        logits = next(forward([images], of=[(domain,)]))
        return risk(logits, labels, self.label_smoothing, self.class_weights)


class MLDG(MetaLearning):
    """Step on one domain so that another improves too. Per pair (i, j) of domains the gradient is

        ∇L_i(θ) + β ∇L_j(θ'),  θ' = one step of a fresh optimiser from θ on L_i,

    and θ takes one step on what the rule makes of them, by default their mean. The domains, in an
    order drawn anew, are paired in a ring: each is meta-train domain once and meta-test domain
    once, which works from D = 2 on. (DomainBed holds two domains out as meta-test, which leaves one
    of three unused and none of two to train.)

    make_optimizer: a fresh optimiser like the run's, for the inner steps.

    Memory: the parameters once more, two gradients, and the fresh optimiser's state.

    Source: Li et al., "Learning to Generalize: Meta-Learning for Domain Generalization", AAAI 2018,
    algorithm 1, without the second-order term, as in DomainBed.
    """

    name = "mldg"
    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (
        Hyperparameter("beta", 1.0, "weight β of the meta-test loss", source=DOMAINBED),
    )

    def __init__(
        self,
        rule: Rule,
        generator: torch.Generator,
        make_optimizer: OptimizerFactory,
        **given: Any,
    ) -> None:
        if not callable(make_optimizer):
            raise ArgumentError(
                f"make_optimizer is a function of the parameters, found a "
                f"{type(make_optimizer).__name__}; {_EXAMPLE}"
            )
        super().__init__(generator, **given)
        self.rule = rule
        self.minimum_domains = max(2, rule.minimum_domains)
        self._make_optimizer = make_optimizer

    @override
    def take(self, step: Step) -> BackwardResult:
        step.optimizer.zero_grad(set_to_none=True)
        ring = random_ring(len(step.batches), self._generator)
        # L_i at θ: a domain that is not finite spoils another's pair
        risks = torch.zeros(len(ring), dtype=torch.float64, device=step.batches[0][0].device)

        def produce(
            named: list[tuple[str, Tensor]],
            accumulator: Accumulator,
            scaler: torch.amp.GradScaler | None,
        ) -> list[Tensor]:
            parameters = [parameter for _, parameter in named]
            losses = []
            for train, test in ring:  # sorted by the meta-train domain
                risks[train], loss, gradients = self._pair(step, train, test, parameters, scaler)
                accumulator.receive_domain(train, gradients)
                losses.append(loss)
            if risks.device.type == "cpu":
                check_losses(risks)
            return losses

        result = write_update(
            step.named,
            self.rule,
            produce,
            scaler=step.scaler,
            defer_check=True,
            no_say=self.no_say,
        )
        step.update_parameters(result)
        return replace(result, checked=risks)

    def _pair(
        self,
        step: Step,
        train: int,
        test: int,
        parameters: list[Tensor],
        scaler: torch.amp.GradScaler | None,
    ) -> tuple[Tensor, Tensor, Gradients]:
        """L_i at θ, L_i + β L_j at θ', and the gradient of their sum as if θ' were θ."""
        first = self._risk(step, train)
        gradients = gradients_of(first, parameters, train, scaler)
        first = first.detach()  # and its graph goes, before that of the second is built
        with self._inner_step(parameters, gradients, scaler):
            second = self.values["beta"] * self._risk(step, test)
            added = gradients_of(second, parameters, train, scaler)
        return first, first + second.detach(), _sums(gradients, added)

    def _fresh_optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        made = self._make_optimizer(cast("list[nn.Parameter]", parameters))
        if not isinstance(made, torch.optim.Optimizer):
            raise ArgumentError(
                f"make_optimizer gives a torch optimiser, found a {type(made).__name__}; {_EXAMPLE}"
            )
        return made

    @contextmanager
    def _inner_step(
        self,
        parameters: list[Tensor],
        gradients: Gradients,
        scaler: torch.amp.GradScaler | None,
    ) -> Iterator[None]:
        """Inside, the parameters are at θ', one step along the gradients."""
        before = [p.detach().clone() for p in parameters]
        scale = 1.0 if scaler is None else scaler.get_scale()
        # Where a gradient overflowed the scaler will skip the step, so that no θ' is needed.
        finite = scale == 1 or all(bool(g.isfinite().all()) for g in gradients if g is not None)
        try:
            if finite:
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    unscaled = gradient if gradient is None or scale == 1 else gradient / scale
                    parameter.grad = unscaled
                self._fresh_optimizer(parameters).step()
                for parameter in parameters:
                    parameter.grad = None
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(parameters, before, strict=True):
                    parameter.copy_(value)

    @override
    def state_dict(self) -> dict[str, Tensor]:
        return joined_states(rule=self.rule.state_dict())

    @override
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.rule.load_state_dict(split_states(state, ("rule",))["rule"])


class Fish(MetaLearning):
    """θ ← θ + ε (θ̃ − θ), where θ̃ is θ after one optimiser step on each domain in a random order,

    which in the mean raises the inner products of the domains' gradients. The run's optimiser
    takes the inner steps and keeps its state. The steps follow one another, so that there are no
    D gradients at one θ for a rule to combine. Buffers, such as batch normalisation's running
    statistics, stay as the inner steps leave them; DomainBed interpolates them too. Where a step
    fails, parameters and buffers are as they were before it, and the optimiser's state is not.

    Source: Shi et al., "Gradient Matching for Domain Generalization", ICLR 2022, algorithm 1; ε as
    `meta_lr` in DomainBed.
    """

    name = "fish"
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
    has_one_update = False

    @override
    def take(self, step: Step) -> BackwardResult:
        parameters = [p for _, p in step.named if p.requires_grad]
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
        generator, domains = self._generator, len(step.batches)
        order = torch.randperm(domains, generator=generator, device=generator.device).tolist()
        losses = [torch.empty(())] * domains
        for domain in order:
            step.optimizer.zero_grad(set_to_none=True)
            loss = self._risk(step, domain)
            try:
                result = backward([loss], step.named, Sum(), scaler=step.scaler)
            except NonFiniteError as error:
                raise non_finite(error, f"domain {domain}", domain) from error
            losses[domain] = result.losses[0]
            step.update_parameters(result)
        return losses


def _sums(gradients: Sequence[Tensor | None], added: Sequence[Tensor | None]) -> Gradients:
    """Their sums, in the memory of the first where it is there."""
    return [
        more if gradient is None else gradient if more is None else gradient.add_(more)
        for gradient, more in zip(gradients, added, strict=True)
    ]
