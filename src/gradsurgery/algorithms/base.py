"""What one training step is: the domains' batches in, an optimiser step out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from gradsurgery.algorithms.objectives import Batch
from gradsurgery.engine import BackwardResult, processes
from gradsurgery.errors import ArgumentError, NonFiniteError, check_kind
from gradsurgery.hyperparameters import spelled
from gradsurgery.rules.base import beyond_precision, forget

Autocast = Callable[[], AbstractContextManager[Any]]

# A loss scaler halves its scale whenever a gradient overflows. Below this, no scale helps.
_LEAST_SCALE = 2.0**-10


@dataclass(frozen=True)
class Step:
    """What one training step works with.

    batches: one per source domain.
    number: of the step, counted from 1.
    autocast: is entered around each forward pass.
    """

    model: nn.Module
    batches: Sequence[Batch]
    optimizer: torch.optim.Optimizer
    number: int
    scaler: torch.amp.GradScaler | None = None
    autocast: Autocast = nullcontext
    clip_norm: float | None = None

    @cached_property
    def named(self) -> list[tuple[str, nn.Parameter]]:
        """The model's parameters with their names; its modules are gone through once a step."""
        return list(self.model.named_parameters())

    def update_parameters(self, result: BackwardResult) -> bool:
        """Clip the update and step the optimiser, through the scaler where there is one.

        On an accelerator the optimiser leaves the parameters as they are where a gradient was not
        finite, which `result.check()` tells later; one that cannot is not stepped before that.

        Returns False where the scaler skips the step, as the gradients are not finite. Raises
        `NonFiniteError` where they are not at any scale.
        """
        if self.clip_norm is not None:
            self._clip(self.clip_norm, result)
        optimizer: Any = self.optimizer
        if self.scaler is not None:
            before = self.scaler.get_scale()
            self.scaler.step(optimizer)
            self.scaler.update()
            scale = self.scaler.get_scale()
            if self.scaler.is_enabled() and scale < _LEAST_SCALE:
                raise NonFiniteError(
                    "the gradients are not finite at any scale of the loss; use float32 or "
                    "bfloat16, lower the learning rate or look at the images",
                    domain=None,
                )
            return scale >= before
        if result.found_inf is None:
            optimizer.step()
        elif getattr(optimizer, "_step_supports_amp_scaling", False):  # as GradScaler asks
            optimizer.grad_scale, optimizer.found_inf = None, result.found_inf
            try:
                optimizer.step()
            finally:
                del optimizer.grad_scale, optimizer.found_inf
        else:
            result.check()
            optimizer.step()
        return True

    def _clip(self, limit: float, result: BackwardResult) -> None:
        """Scale the update, all parameters together, to a norm of at most `limit`.

        A norm beyond the range of float32 would make an update of zeros, which nobody would see.
        """
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        updated = [p for _, p in self.named if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in updated if p.grad is not None])
        found = result.found_inf
        if self.scaler is None and found is None and not norm.isfinite():
            raise beyond_precision()
        if found is not None:  # the optimiser, and who looks later, are to know of it
            found.copy_(torch.maximum(found, norm.isfinite().logical_not().to(found)))
        norm = torch.where(norm.isfinite(), norm, torch.nan)
        nn.utils.clip_grads_with_norm_(updated, limit, norm)


class Algorithm(ABC):
    """One step of a method; the optimiser is the run's.

    minimum_domains: the least number of source domains that it makes sense with.
    has_one_update: whether its step is one of the optimiser on one update, which can be clipped.
    label_smoothing, class_weights: of the cross-entropies that it takes itself.
    lacking: the classes that a source domain lacks, bool [domains, classes].
    no_say: the same for each parameter of the last layer, by name.
    features_may_stay: whether there may be steps that train the last layer alone, where a penalty
        on features does nothing; elsewhere they are refused.
    """

    minimum_domains: int = 1
    has_one_update: ClassVar[bool] = True
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None
    lacking: Tensor | None = None
    no_say: Mapping[str, Tensor] | None = None
    features_may_stay: bool = False

    def __init_subclass__(cls) -> None:
        forget(cls, "stage", Algorithm, of=("take",))

    @override
    def __repr__(self) -> str:
        return spelled(self)

    def step(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        optimizer: torch.optim.Optimizer,
        *,
        step: int,
        scaler: torch.amp.GradScaler | None = None,
        autocast: Autocast = nullcontext,
        clip_norm: float | None = None,
    ) -> BackwardResult:
        """Take step `step`, counted from 1, with one batch per source domain.

        `autocast` is entered around each forward pass. `clip_norm` is the largest norm of the
        update, all parameters together; a longer one is scaled down to it. Returns the domains'
        losses and what their gradients looked like. Raises `ArgumentError` for batches that are not
        pairs of as many images as labels, or of too few domains for the method, and for what is no
        model, optimiser or number of a step.
        """
        taken = Step(model, batches, optimizer, step, scaler, autocast, clip_norm)
        _check_parts(taken)
        _check_batches(batches)
        if len(batches) < self.minimum_domains:
            raise ArgumentError(
                f"{self!r} needs batches of at least {self.minimum_domains} source domains, found "
                f"{len(batches)}; leave such a step out, or take it with deep-all"
            )
        return self.take(taken)

    def treat_classes(
        self, weights: Tensor | None, lacking: Tensor | None, heads: Sequence[str] = ()
    ) -> None:
        """Weigh the classes, [classes], and leave a domain without a say on those it lacks.

        heads: the names of the last layer's parameters, which have a row for each class.
        """
        self.class_weights, self.lacking = weights, lacking
        self.no_say = None if lacking is None else dict.fromkeys(heads, lacking)

    @abstractmethod
    def take(self, step: Step) -> BackwardResult:
        """Take the step: set the gradients and step the optimiser."""

    def smooth_labels(self, label_smoothing: float) -> None:
        """Train on targets that spread a weight of `label_smoothing`, in [0, 1), over all classes.

        Raises `ArgumentError` where the method takes cross-entropies that this does not reach.
        """
        self.label_smoothing = label_smoothing

    def stage(self, step: int) -> Any:
        """What of the step's number decides what is computed at it.

        Steps of equal stages do the same with other images and draws. None where that is not
        known.
        """
        return None

    def restarts_optimizer(self, step: int) -> bool:
        """Whether the optimiser's state is dropped before step `step`."""
        return False

    def idle_reason(self, steps: int) -> str | None:
        """Why a run of so many steps is one of a plainer method, with the cure; None elsewhere."""
        return None

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs beside the model and the optimiser."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a state of `state_dict`; raises `ArgumentError` on any other keys."""
        if state:
            raise ArgumentError(
                f"{type(self).__name__} keeps no state, found {', '.join(sorted(state))}; load the "
                "state of the same method"
            )


def _check_parts(step: Step) -> None:
    check_kind("model", step.model, nn.Module, "a torch.nn.Module")
    optimizer: Any = step.optimizer
    number: Any = step.number
    if not hasattr(optimizer, "zero_grad") or not hasattr(optimizer, "step"):
        raise ArgumentError(
            f"optimizer is a torch optimiser of the model's parameters, found a "
            f"{type(optimizer).__name__}"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ArgumentError(
            "LBFGS computes the loss several times a step, from a closure, and gradient surgery "
            "has one update a step; use another optimiser, as Adam or SGD"
        )
    groups = getattr(optimizer, "param_groups", ())
    stepped = {id(parameter) for group in groups for parameter in group["params"]}
    # as a rule the first one is there, and no other is looked at
    there = (id(p) in stepped for _, p in step.named if p.requires_grad)
    if groups and not next(there, True) and not any(there):
        raise ArgumentError(
            "the optimiser has none of the model's parameters that require gradients, which would "
            "stay as they are; build it of model.parameters()"
        )
    if (ranks := processes()) > 1:
        raise ArgumentError(
            f"found a process group of {ranks} ranks: a method takes its step in one process, as "
            "its objective would see a part of each domain's images; train in one, or call "
            "gradsurgery.backward, which takes the gradients of several together"
        )
    if not isinstance(number, Integral) or number < 1:
        raise ArgumentError(
            f"step is counted from 1, found {number!r}; give the number of the step"
        )


def _check_batches(batches: Any) -> None:
    if not isinstance(batches, Sequence):
        raise ArgumentError(
            "batches are a list with one pair (images, labels) per source domain, found a "
            f"{type(batches).__name__}"
        )
    for domain, batch in enumerate(batches):
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ArgumentError(
                f"the batch of domain {domain} is a pair (images, labels), found "
                f"{type(batch).__name__}"
            )
        images, labels = batch
        for what, part in (("images", images), ("labels", labels)):
            if not isinstance(part, Sized) or (isinstance(part, Tensor) and not part.ndim):
                raise ArgumentError(
                    f"the {what} of domain {domain} are a tensor with one row each, found "
                    f"{'a single number' if isinstance(part, Tensor) else type(part).__name__}"
                )
        if len(images) != len(labels):
            raise ArgumentError(
                f"the batch of domain {domain} has {len(images)} images and {len(labels)} labels; "
                "give every image its label"
            )
    if not len(batches):
        raise ArgumentError("there is no batch; give one per source domain")


def non_finite(error: NonFiniteError, where: str, domain: int | None) -> NonFiniteError:
    """The error of a backward pass that knew no more than one loss, with whose loss it was."""
    what = "loss" if error.parameter is None else "gradient"
    at = "" if error.parameter is None else f" at parameter {error.parameter}"
    return NonFiniteError(
        f"the {what} of {where}{at} is NaN or infinite; lower the learning rate, use a wider "
        "precision or look at the images",
        domain=domain,
        parameter=error.parameter,
    )
