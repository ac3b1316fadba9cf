"""Meta-learning domain generalization, first order (Li et al. 2018)."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gradsurgery.algorithms.objectives.base import (
    Batch,
    DomainLosses,
    Forward,
    Objective,
    values_of,
)
from gradsurgery.algorithms.objectives.mixup import random_ring
from gradsurgery.hyperparameters import Hyperparameter


class MLDG(Objective):
    """Step on one domain so that another improves too. Per pair (i, j) of domains the gradient is

        ∇L_i(θ) + β ∇L_j(θ'),  θ' = one step of a fresh optimiser from θ on L_i,

    and θ takes one step on their mean. The domains, in an order drawn anew, are paired in a ring:
    each is meta-train domain once and meta-test domain once, which works from D = 2 on. (DomainBed
    holds two domains out as meta-test, which leaves one of three unused and none of two to train.)

    The inner step is the run's optimiser with a fresh state. Memory: the parameters once more,
    their gradients, and that state.

    Source: Li et al., "Learning to Generalize: Meta-Learning for Domain Generalization", AAAI 2018,
    algorithm 1, without the second-order term, as in DomainBed.
    """

    name: ClassVar[str] = "mldg"
    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (
        Hyperparameter("beta", 1.0, "weight β of the meta-test loss"),
    )
    minimum_domains: ClassVar[int] = 2
    pools: ClassVar[bool] = False

    def losses(self, forward: Forward, batches: Sequence[Batch], step: int) -> DomainLosses:
        """The two parts of each pair; the second is computed at θ'."""
        risks: list[Tensor] = []  # L_i at θ: a domain that is not finite spoils another's pair
        for train, test in random_ring(len(batches), self.surroundings.generator):
            with closing(self._pair(forward, batches[train], batches[test], risks)) as pair:
                yield pair
        values_of(risks)

    def _pair(
        self, forward: Forward, train: Batch, test: Batch, risks: list[Tensor]
    ) -> Generator[Tensor, None, None]:
        """L_i at θ; then, once its gradient is there, β L_j at θ'."""
        risk = cross_entropy(next(forward([train[0]])), train[1])
        risks.append(risk.detach())
        yield risk
        del risk  # and its graph, before that of the second is built
        with self._inner_step(forward):
            yield self.values["beta"] * cross_entropy(next(forward([test[0]])), test[1])

    @contextmanager
    def _inner_step(self, forward: Forward) -> Iterator[None]:
        """Inside, the parameters are at θ', one step along the gradients they have now."""
        parameters = [p for p in forward.model.parameters() if p.requires_grad]
        before = [p.detach().clone() for p in parameters]
        try:
            with unscaled(parameters, forward.loss_scale) as finite:
                if finite:
                    self.surroundings.make_optimizer(parameters).step()
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(parameters, before, strict=True):
                    parameter.copy_(value)


@contextmanager
def unscaled(parameters: Sequence[Tensor], scale: float) -> Iterator[bool]:
    """Inside, the gradients are without the loss scaler's factor; gives whether all are finite.

    Where one overflowed the scaler will skip the step, so that no θ' is needed.
    """
    if scale == 1:
        yield True
        return
    scaled = [p.grad for p in parameters]
    for parameter, gradient in zip(parameters, scaled, strict=True):
        parameter.grad = None if gradient is None else gradient / scale
    try:
        yield all(bool(gradient.isfinite().all()) for gradient in scaled if gradient is not None)
    finally:
        for parameter, gradient in zip(parameters, scaled, strict=True):
            parameter.grad = gradient
