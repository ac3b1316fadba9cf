"""Forward passes, one per domain or one over the pooled images, and the loss of their logits."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from functools import reduce
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.functional import cross_entropy, one_hot
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from gradsurgery.engine import check_losses
from gradsurgery.errors import ArgumentError

OUT_OF_REACH = -1e4
"""A logit whose probability is 0, and whose product with it is 0 too."""

_CLASS_NUMBERS = (torch.int64, torch.uint8)  # that torch has a cross-entropy for

Logits = Float[Tensor, "batch classes"]
_OF_BATCHES = {torch.batch_norm, torch.instance_norm} | {
    functional.batch_norm,
    functional.instance_norm,
}


class NormalizedRows(TorchFunctionMode):
    """Inside, one row's normalisation and its gradient lie in memory in the order of dimensions.

    On processors PyTorch (2.14) takes the place of one for that of the other where one of them is
    laid out in another order, e.g. as a transposed view, and the gradient of a single row is wrong,
    in evaluation mode too: LeViT, XCiT and EfficientFormer of timm have such rows.
    """

    @override
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _OF_BATCHES:
            return func(*args, **kwargs)
        row, *others = args or (kwargs["input"],)
        if row.ndim < 3 or len(row) != 1:
            return func(*args, **kwargs)
        named = {name: value for name, value in kwargs.items() if name != "input"}
        result = func(row.contiguous(), *others, **named)
        if result.requires_grad:
            result.register_hook(torch.Tensor.contiguous)
        return result


class Forward:
    """The network as an objective sees it.

    shared: one pass over the images of all domains, rather than one per domain at the moment its
        logits are asked for.
    lacking: the classes that each domain lacks. Their logits are out of reach of its losses, which
        are then those of a network with the other classes alone.
    trains_features: whether what goes into the last layer has to follow from trained parameters.

    `values` are the losses whose values an objective has asked for, None before.
    """

    def __init__(
        self,
        model: nn.Module,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        *,
        shared: bool = False,
        lacking: Bool[Tensor, "domains classes"] | None = None,
        trains_features: bool = False,
    ) -> None:
        self.model = model
        self.shared = shared
        self.values: Tensor | None = None
        self._autocast = autocast
        self._lacking = lacking
        self._trains_features = trains_features
        self._weights: dict[str, Tensor] = {}

    def __call__(
        self, images: Sequence[Tensor], of: Sequence[tuple[int, ...]] | None = None
    ) -> Iterator[Logits]:
        """The logits of each domain's images, in order, in at least float32.

        of: the domains that each part of the images is of, where it is not one after the other.
        """
        if not self.shared:
            passes = (widened(self._pass(part)) for part in images)
        else:
            logits = widened(self._pass(torch.cat(list(images))))
            passes = iter(logits.split([len(part) for part in images]))
        domains = of or [(domain,) for domain in range(len(images))]
        return (self._reached(z, part) for z, part in zip(passes, domains, strict=True))

    def at(self, weights: Mapping[str, Tensor]) -> "Forward":
        """The network where the parameters of these names have these values instead.

        Gradients go through the values to what they are made of: the loss at θ + ε has its gradient
        there, and hands it to θ.
        """
        moved = copy(self)
        moved._weights = {**self._weights, **weights}
        return moved

    def with_head_inputs(self, images: Sequence[Tensor]) -> Iterator[tuple[Tensor, Logits]]:
        """The same, with what goes into the last linear layer: the features, [batch, features].

        Raises `ArgumentError` where the network does not end in a linear layer, called once, and
        where nothing before it is trained that has to be.
        """
        passes: Iterator[tuple[Tensor, ...]]
        if not self.shared:
            passes = (self._pass_to_head(part) for part in images)
        else:
            sizes = [len(part) for part in images]
            both = self._pass_to_head(torch.cat(list(images)))
            passes = zip(*(tensor.split(sizes) for tensor in both), strict=True)
        return ((inputs, self._reached(z, (d,))) for d, (inputs, z) in enumerate(passes))

    def _reached(self, logits: Logits, domains: tuple[int, ...]) -> Logits:
        """The logits, those of the classes that all of `domains` lack out of reach."""
        if self._lacking is None:
            return logits
        if max(domains) >= len(self._lacking):
            raise ArgumentError(
                f"there are images of domain {max(domains)}, whose classes are not known; give "
                "forward the images of every source domain, in order"
            )
        lacking = reduce(torch.logical_and, (self._lacking[domain] for domain in domains))
        return logits.masked_fill(lacking, OUT_OF_REACH)

    def values_of(self, losses: Sequence[Tensor]) -> Float[Tensor, " domains"]:
        """The domains' losses, detached, before what one is reaches the others.

        Raises `NonFiniteError` naming the first domain whose loss is NaN or infinite; on an
        accelerator, which is not waited for, the step's result does.
        """
        self.values = torch.stack([loss.detach() for loss in losses])
        if self.values.device.type == "cpu":
            check_losses(self.values)
        return self.values

    def _pass(self, images: Tensor) -> Tensor:
        try:
            alone = len(images) == 1 and images.device.type == "cpu"
            with self._autocast(), NormalizedRows() if alone else nullcontext():
                if self._weights:
                    logits = functional_call(self.model, self._weights, (images,))
                else:
                    logits = self.model(images)
        except ValueError as error:
            if len(images) != 1 or not _is_of_batch_norm(error, self.model):
                raise
            raise ArgumentError(
                f"a batch of {len(images)} image leaves a batch normalisation a single value a "
                "channel to normalise by; give 2 images or more, or batch_norm 'frozen'"
            ) from error
        if not isinstance(logits, Tensor):
            found = type(logits).__name__
            hint = ", e.g. its .logits" if hasattr(logits, "logits") else ""
            raise ArgumentError(
                f"{type(self.model).__name__} gives a {found}, expected a tensor of logits; wrap "
                f"the model in one that returns the tensor alone{hint}"
            )
        return logits

    @property
    def head(self) -> nn.Linear:
        """The last linear layer; raises `ArgumentError` where there is none."""
        linear = [layer for layer in self.model.modules() if isinstance(layer, nn.Linear)]
        if not linear:
            raise ArgumentError(
                f"{type(self.model).__name__} has no linear layer, which the method needs as its "
                "last; choose another backbone or method"
            )
        return linear[-1]

    def _pass_to_head(self, images: Tensor) -> tuple[Tensor, Logits]:
        head, seen = self.head, list[tuple[Tensor, Tensor, int]]()
        handle = head.register_forward_hook(
            lambda _, given, made: seen.append((given[0], made, made._version))
        )
        try:
            logits = self._pass(images)
        finally:
            handle.remove()
        # what is changed in place afterwards is the same tensor
        if [(id(made), version) for _, made, version in seen] != [(id(logits), logits._version)]:
            raise ArgumentError(
                f"the last linear layer of {type(self.model).__name__} does not give its "
                "logits, which the method needs; choose another backbone or method"
            )
        features = seen[0][0]
        if self._trains_features and not features.requires_grad:
            raise ArgumentError(
                f"the method has a penalty on features, and {type(self.model).__name__} trains "
                "nothing before its last layer: the penalty would do nothing; train more layers, "
                "or take such steps with another method, as deep-all"
            )
        return widened(features), widened(logits)


def _is_of_batch_norm(error: ValueError, model: nn.Module) -> bool:
    """Whether torch itself has raised it, of a model that normalises by the batch."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    of_torch = place is not None and place.tb_frame.f_globals.get("__name__") == functional.__name__
    return of_torch and any(
        layer.training for layer in model.modules() if isinstance(layer, _BatchNorm)
    )


def widened(tensor: Tensor) -> Tensor:
    """The tensor in at least float32: what autocast made narrower is too coarse for a loss."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def risk(
    logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    label_smoothing: float = 0.0,
    class_weights: Float[Tensor, " classes"] | None = None,
) -> Float[Tensor, ""]:
    """−mean_n Σ_k q_nk log softmax(z_n)_k with the targets q of `smoothed`.

    With weights w of the classes the mean is Σ_n w_{y_n} … / Σ_n w_{y_n}.

    Raises `ArgumentError` for labels that are no class numbers. On an accelerator, which would have
    to be waited for, one beyond the classes is the device's own error.
    """
    check_labels(labels)
    try:
        return cross_entropy(logits, labels, class_weights, label_smoothing=label_smoothing)
    except (IndexError, RuntimeError, ValueError) as error:
        raise _explained(error, logits, labels) from error


def check_labels(labels: Any) -> None:
    """Raise `ArgumentError` for labels that are of no type that class numbers are of."""
    if not isinstance(labels, Tensor) or labels.dtype not in _CLASS_NUMBERS:
        found = labels.dtype if isinstance(labels, Tensor) else f"a {type(labels).__name__}"
        raise ArgumentError(
            f"labels are class numbers, a tensor of torch.int64, found {found}; give labels.long()"
        )


def _explained(error: Exception, logits: Tensor, labels: Tensor) -> Exception:
    """What is wrong with labels that have no cross-entropy; the error itself where none is."""
    if logits.ndim < 2 or labels.shape != (len(logits), *logits.shape[2:]):
        return ArgumentError(
            f"labels are one class number for each row of the logits, found shape "
            f"{list(labels.shape)} for logits of shape {list(logits.shape)}"
        )
    classes = logits.shape[1]
    if labels.device.type == "cpu" and isinstance(error, IndexError):
        beyond = labels[(labels < 0) | (labels >= classes)]
        return ArgumentError(
            f"label {beyond[0].item()} is none of the classes 0 to {classes - 1} that the network "
            "has logits for; give it as many classes as there are, or look at the labels"
        )
    return error


def smoothed(
    labels: Int[Tensor, " batch"], logits: Float[Tensor, "batch classes"], label_smoothing: float
) -> Float[Tensor, "batch classes"]:
    """q_nk = (1 − ε)·[k = y_n] + ε/K: the label with most of the weight, and every class with some.

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016,
    section 7.
    """
    classes = logits.shape[1]
    targets = one_hot(labels, classes).to(logits.dtype)
    if label_smoothing == 0:
        return targets
    return (1 - label_smoothing) * targets + label_smoothing / classes
