"""What changes with the step beside the weights: learning rate, frozen layers, and when to stop."""

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from gradsurgery.algorithms import Algorithm
from gradsurgery.backbones import Backbone, batch_norm_layers
from gradsurgery.documents.configuration import RunConfiguration
from gradsurgery.errors import ArgumentError
from gradsurgery.rules.remembering import RememberingRule
from gradsurgery.training.device import SCALES_LOSSES, VARIES, no_graph

ALL_BUT_HEAD = "all-but-head"


def check_recipe(configuration: RunConfiguration, algorithm: Algorithm) -> None:
    """Raise `ArgumentError` where options mean nothing together."""
    c = configuration
    reason = None
    if c.warmup >= c.iterations:
        reason = f"warmup {c.warmup} never ends in {c.iterations} iterations; give more of these"
    elif c.clip_norm is not None and not algorithm.has_one_update:
        reason = (
            f"{c.method} takes a step of the optimiser on every domain, so that there is no one "
            "update to clip; leave clip_norm out"
        )
    elif c.freeze_steps and c.freeze == "none":
        reason = f"freeze_steps is {c.freeze_steps} and nothing is frozen; say what by freeze"
    elif c.freeze_steps and isinstance(getattr(algorithm, "rule", None), RememberingRule):
        reason = (
            f"{c.method} remembers every component that is trained, found freeze_steps "
            f"{c.freeze_steps}, after which there are more; give 0, or another method"
        )
    elif c.freeze_steps >= c.iterations:
        reason = (
            f"freeze_steps {c.freeze_steps} is the whole run of {c.iterations} iterations; give 0 "
            "for that, or fewer"
        )
    elif c.freeze == ALL_BUT_HEAD and _needs_features_trained(c, algorithm):
        reason = _features_stay(c)
    elif c.patience and c.average == "swad":
        reason = "swad needs the losses after its valley, found patience too; leave one of them out"
    if reason is not None:
        raise ArgumentError(reason)
    if c.cuda_graph == "on":
        if c.device == "cpu":
            raise no_graph("the device is cpu")
        if c.precision == "float16":
            raise no_graph(SCALES_LOSSES)
        if algorithm.stage(1) is None:
            raise no_graph(VARIES.format(method=c.method))


def check_features_trained(
    configuration: RunConfiguration, algorithm: Algorithm, backbone: Backbone
) -> None:
    """Raise `ArgumentError` for a penalty on features where only the last layer is trained."""
    if _needs_features_trained(configuration, algorithm) and trains_head_alone(backbone):
        raise ArgumentError(_features_stay(configuration))


def trains_head_alone(backbone: Backbone) -> bool:
    """Whether all parameters that are trained are the last layer's."""
    heads = tuple(f"{path}." for path in backbone.heads)
    named = backbone.model.named_parameters()
    return all(name.startswith(heads) for name, p in named if p.requires_grad)


def _needs_features_trained(c: RunConfiguration, algorithm: Algorithm) -> bool:
    objective = getattr(algorithm, "objective", None)
    return getattr(objective, "shapes_features", False) and not c.freeze_steps


def _features_stay(c: RunConfiguration) -> str:
    if c.freeze == "none":
        return (
            f"{c.method} has a penalty on features, and {c.backbone} has nothing to train before "
            "its last layer: it would do nothing; choose another network, or another method"
        )
    return (
        f"{c.method} has a penalty on features, which freeze {c.freeze} leaves as they are: it "
        "would do nothing; freeze fewer layers, or choose another method"
    )


def rate_factor(configuration: RunConfiguration, step: int) -> float:
    """The learning rate of step `step`, counted from 1, as a fraction of the full one.

    step / warmup in the warm-up, as of `torch.optim.lr_scheduler.LinearLR`. After that, with p the
    fraction of the other steps that is done before this one: 1, 1 − p (linear) or (1 + cos πp) / 2,
    as of `CosineAnnealingLR`. A pure function, so that there is nothing to keep for a resumed run.

    >>> run = RunConfiguration(data="pacs", target="photo", schedule="cosine", warmup=10)
    >>> rate_factor(run, 5), rate_factor(run, 10), rate_factor(run, 11), rate_factor(run, 506)
    (0.5, 1.0, 1.0, 0.5)
    """
    warmup = configuration.warmup
    if step <= warmup:
        return step / warmup
    done = (step - 1 - warmup) / (configuration.iterations - warmup)
    match configuration.schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1 - done
        case "cosine":
            return (1 + math.cos(math.pi * done)) / 2


def changes_rate(configuration: RunConfiguration) -> bool:
    """Whether the learning rate depends on the step."""
    return configuration.schedule != "constant" or configuration.warmup > 0


class LearningRate:
    """Sets the optimiser's learning rate before every step.

    On a GPU it is a number in the GPU's memory: a step that is recorded once reads it anew.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        configuration: RunConfiguration,
        device: torch.device,
    ) -> None:
        self._optimizer = optimizer
        self._configuration = configuration
        self._there = torch.zeros((), device=device) if device.type == "cuda" else None
        self.set(1)

    def set(self, step: int) -> None:
        """That of step `step`, counted from 1."""
        rate = self._configuration.learning_rate * rate_factor(self._configuration, step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate if self._there is None else self._there.fill_(rate)


class Freezing:
    """The parameters that are not trained, for the first `steps` steps or, where 0, for all.

    Batch normalisation that is frozen, by its own parameters or as a part of what is, normalises by
    its running statistics, which stay as they are: a frozen layer is one function.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], steps: int) -> None:
        frozen = set(names)
        self._parameters = [p for name, p in model.named_parameters() if name in frozen]
        ids = {id(parameter) for parameter in self._parameters}
        own = {module: {id(p) for p in module.parameters()} for module in model.modules()}
        within = {
            layer
            for module in own
            if own[module] and own[module] <= ids
            for layer in batch_norm_layers(module)  # one without parameters is frozen with them
        }
        self._layers = [layer for layer in batch_norm_layers(model) if layer in within]
        self._steps = steps
        if not steps:
            self.apply(1)  # an optimiser that is built after this leaves them out

    def holds(self, step: int) -> bool:
        """Whether they are frozen at step `step`, counted from 1."""
        return bool(self._parameters) and (not self._steps or step <= self._steps)

    def apply(self, step: int) -> None:
        """Freeze what step `step` does not train, in a model that is in training mode."""
        held = self.holds(step)
        for parameter in self._parameters:
            parameter.requires_grad_(not held)
        if held:
            for layer in self._layers:
                layer.eval()


def frozen_names(backbone: Backbone, freeze: str) -> list[str]:
    """The parameters of the backbone that `freeze` names.

    freeze: "none", "all-but-head", or layers and parameters by name, each maybe a pattern with *
        and ?, separated by commas; a layer stands for all in it.

    Raises `ArgumentError` where a name stands for nothing, or nothing would be left to train.
    """
    names = [name for name, p in backbone.model.named_parameters() if p.requires_grad]
    if freeze == "none":
        return []
    if freeze == ALL_BUT_HEAD:
        frozen = [name for name in names if not _within(name, backbone.heads)]
        if len(frozen) == len(names):
            raise ArgumentError(
                f"the last layer of {backbone.name} is not known; freeze the others by name, "
                f"{_choices(names)}"
            )
        return frozen
    patterns = [part.strip() for part in freeze.split(",") if part.strip()]
    for pattern in patterns:
        if not any(_within(name, [pattern]) for name in names):
            raise ArgumentError(
                f"{backbone.name} has no layer {pattern!r} to freeze; it has {_choices(names)}, "
                f"those within them, and {ALL_BUT_HEAD}"
            )
    frozen = [name for name in names if _within(name, patterns)]
    if len(frozen) == len(names):
        raise ArgumentError(
            f"freeze {freeze!r} leaves nothing of {backbone.name} to train; {ALL_BUT_HEAD} leaves "
            "the last layer"
        )
    return frozen


def _within(name: str, patterns: Sequence[str]) -> bool:
    """Whether the parameter, or a layer that it is in, has one of these names."""
    parts = name.split(".")
    paths = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return any(fnmatchcase(path, pattern) for path in paths for pattern in patterns)


def _choices(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(name.split(".")[0] for name in names))


def has_stopped(configuration: RunConfiguration, accuracies: Sequence[float]) -> bool:
    """Whether the last `patience` validation accuracies are none above the highest before them.

    Equal is not higher. A pure function of the curve, so that a resumed run stops at the same step.

    >>> run = RunConfiguration(data="pacs", target="photo", patience=2)
    >>> has_stopped(run, [0.5, 0.6, 0.6]), has_stopped(run, [0.5, 0.6, 0.6, 0.5])
    (False, True)
    """
    patience = configuration.patience
    if not patience or len(accuracies) <= patience:
        return False
    return max(accuracies[-patience:]) <= max(accuracies[:-patience])
