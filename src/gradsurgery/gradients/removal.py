"""What a rule takes out of the sum of several gradients, and how the loss curves along it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Removal(NamedTuple):
    """Of the sum s = Σ g_d and a rule's update u.

    length: ‖u‖ / ‖s‖. cosine: of u and s. removed: ‖s − u‖ / ‖s‖. part: s − u itself.
    A ratio is None where s is zero, the cosine where u is.
    """

    length: float | None
    cosine: float | None
    removed: float | None
    part: Float[Tensor, " params"]


def removal(total: Float[Tensor, " params"], update: Float[Tensor, " params"]) -> Removal:
    """Compare a rule's update with the sum of the gradients.

    >>> found = removal(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0]))
    >>> round(found.length, 6), round(found.cosine, 6), found.removed, found.part.tolist()
    (0.6, 0.6, 0.8, [0.0, 4.0])
    """
    part = total - update
    whole, kept = (float(vector.double().norm()) for vector in (total, update))
    return Removal(
        kept / whole if whole else None,
        cosine(total, update),
        float(part.double().norm()) / whole if whole else None,
        part,
    )


def cosine(first: Float[Tensor, " params"], second: Float[Tensor, " params"]) -> float | None:
    """The cosine of two vectors in [-1, 1]; None where one is zero."""
    a, b = first.double(), second.double()
    lengths = float(a.norm() * b.norm())
    return max(-1.0, min(1.0, float(a @ b) / lengths)) if lengths else None


def group_gradients(
    losses: Sequence[Float[Tensor, ""]], parameters: Sequence[Tensor]
) -> Float[Tensor, "groups params"]:
    """The gradient of each loss by all parameters in a row; the losses' graph is kept."""
    rows = [
        torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
        for loss in losses
    ]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


def curvatures(
    loss: Float[Tensor, ""],
    parameters: Sequence[Tensor],
    directions: Sequence[Float[Tensor, " params"]],
) -> list[float | None]:
    """How the loss curves along each direction r: r·Hr / r·r, with one product Hr each.

    loss: with its graph. H is its Hessian by all of the parameters, and Hr the gradient of
        ∇L·r. None for a direction that is zero.

    >>> w = torch.tensor([1.0, 1.0], requires_grad=True)
    >>> curvatures(w[0] ** 2 + 3 * w[1] ** 2, [w], [torch.tensor([2.0, 0.0]), torch.ones(2)])
    [2.0, 4.0]
    """
    first = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    slope = torch.cat([part.flatten() for part in first])
    found: list[float | None] = []
    for direction in directions:
        square = float(direction.double() @ direction.double())
        if not square or not slope.requires_grad:
            found.append(0.0 if square else None)
            continue
        product = torch.autograd.grad(
            slope @ direction, parameters, retain_graph=True, materialize_grads=True
        )
        turned = torch.cat([part.flatten() for part in product])
        found.append(float(turned.double() @ direction.double()) / square)
    return found


class GroupCosines(NamedTuple):
    """Cosines of the gradients of D groups in K batches, from their inner products.

    within: of two batches of one group, a value a pair.
    across: of two groups in one batch, a value a pair.
    expected: E g_d · E g_e by E g_d · E g_d, both averaged over the groups; None where the batches'
        noise hides the gradients.
    """

    within: Float[Tensor, " pairs"]
    across: Float[Tensor, " others"]
    expected: float | None

    @property
    def negative(self) -> float | None:
        """The share of the pairs across groups with a negative cosine."""
        return float((self.across < 0).double().mean()) if len(self.across) else None


def group_cosines(gram: Float[Tensor, "batches groups batches groups"]) -> GroupCosines:
    """The cosines within and across groups.

    gram: the inner products g_ad · g_be of the gradients of group d in batch a and of group e in
        batch b, [K, D, K, D].

    With a ≠ b the noise of the two batches is independent, so that the mean of g_ad · g_be over
    them estimates E g_d · E g_e without bias, also for d = e. A pair with a zero gradient is left
    out.

    >>> rows = torch.tensor([[[1.0, 1.0], [1.0, 0.0]], [[1.0, -1.0], [1.0, 0.0]]])
    >>> found = group_cosines(torch.einsum("adp,bep->adbe", rows, rows))
    >>> found.within.tolist(), [round(x, 4) for x in found.across.tolist()], found.expected
    ([0.0, 1.0], [0.7071, 0.7071], 2.0)
    """
    batches, groups = gram.shape[:2]
    gram = gram.double()
    lengths = torch.einsum("adad->ad", gram).clamp(min=0).sqrt()
    cosines = gram / (lengths[:, :, None, None] * lengths)
    pairs = torch.triu_indices(batches, batches, offset=1)
    two = torch.triu_indices(groups, groups, offset=1)
    within = torch.einsum("adbd->dab", cosines)[:, pairs[0], pairs[1]].flatten()
    across = torch.einsum("adae->ade", cosines)[:, two[0], two[1]].flatten()
    apart = ~torch.eye(batches, dtype=torch.bool)
    products = gram.permute(0, 2, 1, 3)[apart].mean(0)  # [D, D], of different batches
    own = float(products.diagonal().mean())
    other = float(products[~torch.eye(groups, dtype=torch.bool)].mean())
    return GroupCosines(
        within[~within.isnan()], across[~across.isnan()], other / own if own > 0 else None
    )
