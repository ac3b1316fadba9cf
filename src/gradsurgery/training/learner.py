"""The parts of a run that change with every step."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gradsurgery.algorithms import Algorithm, build_method
from gradsurgery.algorithms.objectives import Batch
from gradsurgery.backbones import Backbone, has_batch_norm
from gradsurgery.data import Augmentation, ImageLoader, ImageSet, image_loader
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.engine import BackwardResult
from gradsurgery.errors import ArgumentError
from gradsurgery.training.averaging import WeightAverage, build_average, method_settings
from gradsurgery.training.device import (
    AutocastFactory,
    autocast_factory,
    loss_scaler,
    stores_channels_last,
)
from gradsurgery.training.recipe import (
    Freezing,
    LearningRate,
    changes_rate,
    check_features_trained,
    frozen_names,
)


@dataclass
class Learner:
    """A model and what trains it.

    generator: draws on the device; host_generator: on the processor, where they are one.
    channels_last: how weights and images lie in memory.
    clip_norm: the largest norm of an update, None for any.
    freezing: what is not trained.
    rate: sets the learning rate of every step, None where it is constant.
    augmentation: what becomes of training images, None for nothing.
    compiled_forward: what a training step calls in the place of the model's `forward`, if anything.
    """

    backbone: Backbone
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    algorithm: Algorithm
    average: WeightAverage
    generator: torch.Generator
    host_generator: torch.Generator
    device: torch.device
    autocast: AutocastFactory
    channels_last: bool
    compiled_forward: Callable[..., Any] | None
    clip_norm: float | None
    freezing: Freezing
    rate: LearningRate | None
    augmentation: Augmentation | None

    def take(self, batches: Sequence[Batch], step: int) -> BackwardResult:
        """Take step `step`, counted from 1, with the generators as they are."""
        with self.compiled():
            return self.algorithm.step(
                self.backbone.model,
                batches,
                self.optimizer,
                step=step,
                scaler=self.scaler,
                autocast=self.autocast,
                clip_norm=self.clip_norm,
            )

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """Inside, the model computes by its compiled form, where it has one.

        Elsewhere it is the model that is saved: what is validated, tested and observed. It is
        compiled to be gone back from more than once, as GradNorm does. Raises `ArgumentError` where
        the model cannot be compiled.
        """
        if self.compiled_forward is None:
            yield
            return
        from torch._functorch import config as settings

        model: Any = self.backbone.model
        own = vars(model).get("forward")  # of a model that was given another one than its class's
        model.forward = self.compiled_forward
        try:
            with settings.patch(donated_buffer=False):
                yield
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = " ".join(str(error).split())[:200]
            raise ArgumentError(
                f"{self.backbone.name} cannot be compiled: {reason}; leave --compile out"
            ) from error
        finally:
            del model.forward
            if own is not None:
                model.forward = own

    @property
    def judged(self) -> Backbone:
        """The backbone with the model that is validated and tested."""
        return replace(self.backbone, model=self.average.model)

    def loader(self, images: ImageSet) -> ImageLoader:
        """What brings the images to the device as the backbone takes them."""
        return image_loader(
            images,
            self.backbone.mean,
            self.backbone.std,
            device=self.device,
            channels_last=self.channels_last,
        )

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs; the generator is seeded anew at every step."""
        return {
            "model": self.backbone.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "algorithm": self.algorithm.state_dict(),
            "average": self.average.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state; raises `ValueError` where the optimiser's is of another optimiser."""
        self.backbone.model.load_state_dict(state["model"])
        options = [_options_of(group) for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        if [_options_of(group) for group in self.optimizer.param_groups] != options:
            raise ValueError("its optimiser has other options")
        check_optimizer_state(self.optimizer)
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.algorithm.load_state_dict(state["algorithm"])
        self.average.restore(state["average"])


def build_learner(
    configuration: RunConfiguration, backbone: Backbone, device: torch.device
) -> Learner:
    """Put the backbone's model on `device` and build what trains it."""
    c = configuration
    model = backbone.model.to(device)
    channels_last = stores_channels_last(c, device, model)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    # before the optimiser, which leaves out what is frozen for the whole run
    freezing = Freezing(model, frozen_names(backbone, c.freeze), c.freeze_steps)
    optimizer = build_optimizer(model.parameters(), c)
    generator = torch.Generator(device)
    host_generator = generator if device.type == "cpu" else torch.Generator()
    algorithm = build_method(
        c.method,
        generator=generator,
        host_generator=host_generator,
        make_optimizer=lambda parameters: build_optimizer(
            parameters, c, rate=optimizer.param_groups[0]["lr"]
        ),
        settings=method_settings(c.settings),
        batch_norm=c.batch_norm if has_batch_norm(model) else "frozen",
    )
    check_features_trained(c, algorithm, backbone)
    algorithm.features_may_stay = c.freeze_steps > 0
    algorithm.smooth_labels(c.label_smoothing)
    augmentation = None
    if c.augment != "none":
        augmentation = Augmentation(c.augment, size=c.image_size, seed=c.seed)
    return Learner(
        backbone=backbone,
        optimizer=optimizer,
        scaler=loss_scaler(device, c.precision),
        algorithm=algorithm,
        average=build_average(c, model),
        generator=generator,
        host_generator=host_generator,
        device=device,
        autocast=autocast_factory(device, c.precision),
        channels_last=channels_last,
        compiled_forward=_compiled(model) if c.compile else None,
        clip_norm=c.clip_norm,
        freezing=freezing,
        rate=LearningRate(optimizer, c, device) if changes_rate(c) else None,
        augmentation=augmentation,
    )


def _options_of(group: dict[str, Any]) -> dict[str, tuple[type, Any]]:
    """The options of a group of parameters but for the rate, which may change, with their types."""
    names = group.keys() - {"params", "lr"}
    return {name: (type(group[name]), group[name]) for name in names}


def check_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Raise `ValueError` where a state does not fit its parameter: fused steps do not look."""
    kinds = {
        tuple(sorted((name, value is None) for name, value in state.items()))
        for state in optimizer.state.values()
    }
    if len(kinds) > 1:
        raise ValueError("its optimiser's states are not of one kind")
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            shape = torch.Size() if name == "step" else parameter.shape
            if value is not None and (not isinstance(value, Tensor) or value.shape != shape):
                raise ValueError(f"its optimiser's {name} does not fit its parameter")
    for group in optimizer.param_groups:
        if not isinstance(group["lr"], float | Tensor) or not math.isfinite(group["lr"]):
            raise ValueError("its learning rate is no finite number")


def _compiled(model: nn.Module) -> Callable[..., Any]:
    """The model's `forward`, compiled anew for every shape of its batches, of which a run has few.

    After eight forms of one function torch goes back to the plain one without a word: those of
    earlier runs of the process are dropped. Which form it is must not depend on how fast the
    candidates are today.
    """
    import torch._inductor.config as settings

    torch.compiler.reset()
    options: Any = {"deterministic": True} if hasattr(settings, "deterministic") else None
    compiled: Callable[..., Any] = torch.compile(model.forward, dynamic=False, options=options)
    return compiled


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    configuration: RunConfiguration,
    *,
    rate: float | Tensor | None = None,
) -> torch.optim.Optimizer:
    """Adam, AdamW or SGD with momentum 0.9, in torch's fused form.

    The fused form makes one pass over the parameters: ten times as fast as the default on a
    processor. Its state loads into the same form only.

    rate: the learning rate, by default the run's full one.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    rate = configuration.learning_rate if rate is None else rate
    decay = configuration.weight_decay
    match configuration.optimizer:
        case "adam":
            return torch.optim.Adam(trained, lr=rate, weight_decay=decay, fused=True)
        case "adamw":
            return torch.optim.AdamW(trained, lr=rate, weight_decay=decay, fused=True)
        case "sgd":
            return torch.optim.SGD(trained, lr=rate, momentum=0.9, weight_decay=decay, fused=True)
