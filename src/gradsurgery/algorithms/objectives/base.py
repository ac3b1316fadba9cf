"""What an objective is: the batches of D domains in, D losses out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gradsurgery.errors import ArgumentError, NonFiniteError
from gradsurgery.hyperparameters import Hyperparameter, checked_values

Batch = tuple[Float[Tensor, "batch channels height width"], Int[Tensor, " batch"]]
Logits = Float[Tensor, "batch classes"]
DomainLosses = Generator[Tensor | Iterable[Tensor], None, None]


class Forward(ABC):
    """The network as an objective sees it."""

    model: nn.Module

    @property
    @abstractmethod
    def loss_scale(self) -> float:
        """What the losses, and so the gradients, are multiplied by; 1 without a loss scaler."""

    @abstractmethod
    def __call__(self, images: Sequence[Tensor]) -> Iterator[Logits]:
        """The logits of each domain's images, in order.

        Either one pass per domain, at the moment its logits are asked for, or one pass over the
        pooled images.
        """

    @abstractmethod
    def with_head_inputs(self, images: Sequence[Tensor]) -> Iterator[tuple[Tensor, Logits]]:
        """The same, with what goes into the last linear layer: [batch, features]."""


@dataclass(frozen=True)
class Surroundings:
    """What an objective may use beside the batches.

    generator: for everything random.
    make_optimizer: a fresh optimiser like that of the run, for inner steps.
    """

    generator: torch.Generator
    make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Objective(ABC):
    """Decides the losses of the domains; a rule then decides how their gradients are combined.

    The D losses are such that their mean is the objective of the source, and that ∇ of the d-th
    loss is domain d's share of its gradient: what a loss takes from the other domains is detached.
    """

    name: ClassVar[str]
    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = ()
    minimum_domains: ClassVar[int] = 1
    pools: ClassVar[bool] = True
    """Whether all logits may come from one pass over the pooled images."""
    reads_gradients: ClassVar[bool] = False
    """Whether it differentiates with respect to parameters by itself."""
    state_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, surroundings: Surroundings, **given: Any) -> None:
        self.surroundings = surroundings
        self.values = checked_values(self.name, self.hyperparameters, given)
        self.state: dict[str, Tensor] = {}

    @abstractmethod
    def losses(self, forward: Forward, batches: Sequence[Batch], step: int) -> DomainLosses:
        """One scalar loss per source domain for step `step`, counted from 1.

        Where a domain's loss needs no other domain, one graph is alive at a time. A domain's loss
        may come as an iterable of parts, which add up.
        """

    def restarts_optimizer(self, step: int) -> bool:
        """Whether the optimiser's state is dropped before step `step`."""
        return False

    def idle_steps(self) -> int:
        """For how many steps, from the first, the objective is the plain risk."""
        return 0

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs to go on: `state_names`, and nothing before the first step."""
        return dict(self.state)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a state of `state_dict`; raises `ArgumentError` on any other keys."""
        if state and set(state) != set(self.state_names):
            expected = ", ".join(self.state_names) or "nothing"
            raise ArgumentError(
                f"the state of {self.name} holds {expected}, found {', '.join(sorted(state))}; "
                "load the state of the same method"
            )
        self.state = dict(state)

    def remembered(self, name: str, start: Tensor) -> Tensor:
        """The state `name`, which is `start` before the first step, where `start` lies.

        Raises `ArgumentError` where it is of other domains or another network.
        """
        value = self.state.get(name, start).to(start.device)
        if value.shape != start.shape:
            raise ArgumentError(
                f"{self.name} remembers {name} of shape {list(value.shape)}, these batches need "
                f"{list(start.shape)}; build the method anew where domains or network change"
            )
        return value


class AnnealedObjective(Objective):
    """An objective whose penalty has weight 1 for the first `anneal` steps, then its full weight.

    With the full weight the loss is of another scale, so the optimiser's state is dropped, as
    DomainBed does.
    """

    def weight(self, step: int) -> float:
        """The penalty's weight at `step`."""
        full: float = self.values["penalty"]
        return full if step > self.values["anneal"] else 1.0

    def restarts_optimizer(self, step: int) -> bool:
        """At the first step with the full weight."""
        return bool(step == self.values["anneal"] + 1 and step > 1)


def values_of(losses: Sequence[Tensor]) -> Float[Tensor, " domains"]:
    """The domains' losses, detached, before what one is reaches the others.

    Raises `NonFiniteError` naming the first domain whose loss is NaN or infinite.
    """
    values = torch.stack([loss.detach() for loss in losses])
    for domain, finite in enumerate(values.isfinite().tolist()):
        if not finite:
            raise NonFiniteError(
                f"the loss of domain {domain} is {values[domain].item()}, expected a finite number;"
                " lower the learning rate or look at that domain's images",
                domain=domain,
            )
    return values
