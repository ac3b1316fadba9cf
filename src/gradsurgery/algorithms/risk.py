"""The mean cross-entropy of a batch, which every method's losses are made of."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from gradsurgery.errors import ArgumentError

_CLASS_NUMBERS = (torch.int64, torch.uint8)  # that torch has a cross-entropy for


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
    if not isinstance(labels, Tensor) or labels.dtype not in _CLASS_NUMBERS:
        found = labels.dtype if isinstance(labels, Tensor) else f"a {type(labels).__name__}"
        raise ArgumentError(
            f"labels are class numbers, a tensor of torch.int64, found {found}; give labels.long()"
        )
    try:
        return cross_entropy(logits, labels, class_weights, label_smoothing=label_smoothing)
    except (IndexError, RuntimeError, ValueError) as error:
        raise _explained(error, logits, labels) from error


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
