"""What an objective is: the batches of D domains in, D losses out; and the plain one, `erm`."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from gradsurgery.algorithms.forward import Forward, Logits, risk
from gradsurgery.errors import ArgumentError
from gradsurgery.hyperparameters import Hyperparameter, checked_values, spelled
from gradsurgery.rules.base import forget
from gradsurgery.rules.randomness import checked_generator

# of any size each, hence no name for it
Batch = tuple[Float[Tensor, "_ channels height width"], Int[Tensor, " _"]]
DomainLosses = Generator[Tensor, None, None]


class Objective(ABC):
    """Decides the losses of the domains; a rule then decides how their gradients are combined.

    The D losses are such that their mean is the objective of the source, and that ∇ of the d-th
    loss is domain d's share of its gradient: what a loss takes from the other domains is detached.

    A subclass declares its `hyperparameters` and finds their values in `self.values`. Whatever is
    random in it draws from `self.generator`, seeded with 0 where none is given.

    One that takes its cross-entropies from `self.risk` alone says so by `smooths_labels = True`,
    and may then be trained with label smoothing; one whose losses are made of nothing else, by
    `weighs_classes = True`, and may be trained with weights of the classes too. One that asks for
    `forward.with_head_inputs` says so by `reads_features = True`: a compiled network has none. One
    with a penalty that is of these features alone, by `shapes_features = True`: where what makes
    them is frozen, it would do nothing.
    """

    name: ClassVar[str]
    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = ()
    minimum_domains: ClassVar[int] = 1
    state_names: ClassVar[tuple[str, ...]] = ()
    smooths_labels: ClassVar[bool] = False
    weighs_classes: ClassVar[bool] = False
    reads_features: ClassVar[bool] = False
    shapes_features: ClassVar[bool] = False
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None

    def __init_subclass__(cls) -> None:
        forget(cls, "stage", Objective, of=("losses", "weight"))
        forget(cls, "smooths_labels", Objective, of=("losses", "risk"))
        forget(cls, "weighs_classes", Objective, of=("losses", "risk"))
        if not hasattr(cls, "name"):
            cls.name = cls.__name__

    def __init__(self, *, generator: torch.Generator | None = None, **given: Any) -> None:
        self.generator = checked_generator(generator) or torch.Generator().manual_seed(0)
        self.values = checked_values(self.name, self.hyperparameters, given)
        self.state: dict[str, Tensor] = {}

    @override
    def __repr__(self) -> str:
        return spelled(self)

    @abstractmethod
    def losses(self, forward: Forward, batches: Sequence[Batch], step: int) -> DomainLosses:
        """One scalar loss per source domain for step `step`, counted from 1.

        Where a domain's loss needs no other domain, one graph is alive at a time.
        """

    def risk(self, logits: Logits, labels: Int[Tensor, " batch"]) -> Tensor:
        """The mean cross-entropy of a batch, with the run's label smoothing and class weights."""
        return risk(logits, labels, self.label_smoothing, self.class_weights)

    def risks(self, forward: Forward, batches: Sequence[Batch]) -> list[Tensor]:
        """The mean cross-entropies of all domains, all graphs alive."""
        logits = forward([images for images, _ in batches])
        return [self.risk(z, labels) for z, (_, labels) in zip(logits, batches, strict=True)]

    def stage(self, step: int) -> Any:
        """What of the step's number decides the formula of the losses; None where it may be all."""
        return None

    def restarts_optimizer(self, step: int) -> bool:
        """Whether the optimiser's state is dropped before step `step`."""
        return False

    def idle_reason(self, steps: int) -> str | None:
        """Why in so many steps the losses would be those of a plainer objective, with the cure.

        None where they differ.
        """
        return None

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


class ERM(Objective):
    """L_d = mean cross-entropy of domain d's batch.

    Their mean is the risk of the pooled batch where all batches are of one size. Elsewhere it is
    the mean of the domains' means: every domain weighs the same, not every image.
    """

    name = "erm"
    smooths_labels = True
    weighs_classes = True

    @override
    def stage(self, step: int) -> Any:
        return "erm"

    @override
    def losses(self, forward: Forward, batches: Sequence[Batch], step: int) -> DomainLosses:
        logits = forward([images for images, _ in batches])
        for _, labels in batches:
            yield self.risk(next(logits), labels)
