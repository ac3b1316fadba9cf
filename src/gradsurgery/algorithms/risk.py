"""The mean cross-entropy of a batch, which every method's losses are made of."""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot


def risk(
    logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    label_smoothing: float = 0.0,
    class_weights: Float[Tensor, " classes"] | None = None,
) -> Float[Tensor, ""]:
    """−mean_n Σ_k q_nk log softmax(z_n)_k with the targets q of `smoothed`.

    With weights w of the classes the mean is Σ_n w_{y_n} … / Σ_n w_{y_n}.
    """
    return cross_entropy(logits, labels, class_weights, label_smoothing=label_smoothing)


def smoothed(
    labels: Int[Tensor, " batch"], classes: int, label_smoothing: float
) -> Float[Tensor, "batch classes"]:
    """q_nk = (1 − ε)·[k = y_n] + ε/K: the label with most of the weight, and every class with some.

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016,
    section 7.
    """
    targets = one_hot(labels, classes).float()
    if label_smoothing == 0:
        return targets
    return (1 - label_smoothing) * targets + label_smoothing / classes
