"""Whether autograd's graph, by the kinds of its operations alone, keeps the samples apart.

Every tensor in it has the samples along one of its dimensions, each sample's places next to one
another. From the losses, which have no other dimension, that one is followed back through operation
after operation. What an operation does with it is known for those below, by the numbers that they
keep. Any other operation, and any that sums or mixes along the dimension, and the answer is no.
"""

import re
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from torch import Tensor

Node = Any

_ELEMENTWISE = {
    *("Abs", "Add", "Alias", "Clamp", "Clone", "Div", "Elu", "Exp", "Expand", "Gelu", "Log", "Mul"),
    *("Hardsigmoid", "Hardswish", "Hardtanh", "LeakyRelu", "Mish", "NativeDropout", "Neg", "Pow"),
    *("PreluKernel", "Relu", "Rsqrt", "Sigmoid", "Silu", "Softplus", "Sqrt", "Sub", "Tanh"),
    *("ToCopy", "Where", "BinaryCrossEntropyWithLogits", "MseLoss", "SmoothL1Loss"),
}
_ALONG_DIMENSIONS = {
    *("Amax", "Cat", "LinalgVectorNorm", "LogSoftmax", "Logsumexp", "Mean", "Roll", "Select"),
    *("Slice", "Softmax", "Split", "SplitWithSizes", "Sum", "Unbind"),
}
_VIEWS = {"ReshapeAlias", "Squeeze", "UnsafeView", "Unsqueeze", "View"}
_BY_ROWS = {
    *("AdaptiveAvgPool2D", "AvgPool2D", "ConstantPadNd", "Convolution", "CudnnBatchNorm"),
    *("MaxPool2DWithIndices", "NativeBatchNorm", "NativeGroupNorm", "NativeLayerNorm"),
    *("Mm", "NllLoss"),
}
_OTHER_INPUTS = {
    "Addmm": {1},
    "Bmm": {0, 1},
    "ScaledDotProductEfficientAttention": {0, 1, 2},
    "ScaledDotProductFlashAttention": {0, 1, 2},
    "ScaledDotProductFlashAttentionForCpu": {0, 1, 2},
}
"""By rows too, with these inputs' rows; in those above it is the first one."""


def rows_stay_apart(losses: Tensor, samples: int, is_watched: Callable[[Node], bool]) -> bool:
    """Whether the rows of what is watched get their gradient from their own sample's loss alone.

    losses: [samples]; is_watched: the nodes of the graph where that is asked.
    """
    root: Node = losses.grad_fn
    behind = _nodes_before(root, is_watched)
    dimensions: dict[Node, int] = {root: 0}
    waiting: list[Node] = [root]
    while waiting:
        node = waiting.pop()
        for at, (before, number) in enumerate(node.next_functions):
            if before not in behind:
                continue
            shape = before._input_metadata[number].shape
            found = _dimension_before(node, at, shape, dimensions[node], is_watched(node))
            if found is None or not 0 <= found < len(shape) or shape[found] % samples:
                return False
            if dimensions.get(before, found) != found or (found and is_watched(before)):
                return False
            if before not in dimensions:
                dimensions[before] = found
                waiting.append(before)
    return True


def _nodes_before(root: Node, is_watched: Callable[[Node], bool]) -> set[Node]:
    """Those of the graph that are watched, or lead to one that is."""
    users: dict[Node, list[Node]] = {root: []}
    waiting = [root]
    while waiting:
        node = waiting.pop()
        for before, _ in node.next_functions:
            if before is not None and before not in users:
                waiting.append(before)
                users[before] = []
            if before is not None:
                users[before].append(node)
    found: set[Node] = set()
    waiting = [node for node in users if is_watched(node)]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += users[node]
    return found


def _dimension_before(
    node: Node, at: int, shape: Sequence[int], dimension: int, identity: bool
) -> int | None:
    """That of the samples in input `at` of an operation, from that in its output; None for no.

    shape: the input's; identity: whether the operation is known to change nothing.
    """
    after = node._input_metadata[0].shape
    kind = _kind_of(node)
    if kind in _VIEWS:
        return _in_view(shape, after, dimension)
    found: int | None = None
    if identity or kind in _ELEMENTWISE:  # with the dimensions on the right against each other
        found = dimension - len(after) + len(shape)
    elif kind in _ALONG_DIMENSIONS:
        found = _beside(_numbers(node, len(shape)), len(shape), len(after), dimension)
    elif kind in ("Permute", "Transpose", "T"):
        found = _permuted(node, kind, len(shape))[dimension]
    elif dimension == 0 and _is_by_rows(node, kind, at, len(shape)):
        found = 0
    same = found is not None and 0 <= found < len(shape) and shape[found] == after[dimension]
    return found if same else None


def _kind_of(node: Node) -> str:
    """The operation's name; an empty one for a function that somebody has written."""
    name = re.fullmatch(r"(\w+?)Backward\d+", type(node).__name__)
    return name[1] if name and type(node).__module__ == "builtins" else ""


def _in_view(shape: Sequence[int], after: Sequence[int], dimension: int) -> int | None:
    """Where as many places lie before the samples as in the other shape, row after row."""
    before = prod(after[:dimension])
    starts = [at for at, size in enumerate(shape) if size > 1 and prod(shape[:at]) == before]
    return starts[0] if starts and prod(shape) == prod(after) else None


def _beside(dimensions: set[int], before: int, after: int, dimension: int) -> int | None:
    """For an operation along some dimensions, which are there afterwards or are not."""
    others = [at for at in range(before) if at not in dimensions]
    if not dimensions:
        return None
    if before == after:
        return dimension if dimension in others else None
    return others[dimension] if after == len(others) else None


def _numbers(node: Node, count: int) -> set[int]:
    """The dimensions that an operation keeps as its own; counted from the end they are unsigned."""
    kept = getattr(node, "_saved_dim", getattr(node, "_saved_dims", None))
    if kept is None:
        return set()
    return {_signed(one) % count for one in (kept if isinstance(kept, tuple) else (kept,))}


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def _permuted(node: Node, kind: str, count: int) -> list[int]:
    """For each dimension of the output which one of the input it is."""
    if kind == "Permute":
        return [_signed(one) % count for one in node._saved_dims]
    order = list(range(count))
    ends = (node._saved_dim0, node._saved_dim1) if kind == "Transpose" else (0, count - 1)
    first, second = (_signed(one) % count for one in ends)
    order[first], order[second] = second, first
    return order


def _is_by_rows(node: Node, kind: str, at: int, count: int) -> bool:
    """Whether row r of input `at`, of so many dimensions, is for row r of the output alone."""
    if kind in _OTHER_INPUTS:
        return at in _OTHER_INPUTS[kind]
    over_rows = (
        (kind.endswith("BatchNorm") and node._saved_training)
        or (kind == "NativeLayerNorm" and len(node._saved_normalized_shape) >= count)
        or (kind == "ConstantPadNd" and len(node._saved_pad) // 2 >= count)
    )
    return at == 0 and kind in _BY_ROWS and not over_rows
