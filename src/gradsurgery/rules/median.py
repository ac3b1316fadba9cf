"""Median: the middle value of each component (Yin et al. 2018)."""

from jaxtyping import Float
from torch import Tensor

from gradsurgery.rules.base import Rule, check_rows_finite
from gradsurgery.rules.trimmed_mean import mean_of_middle


class Median(Rule):
    """g*_n = the median of g_1n … g_Dn, for an even D the mean of the middle two.

    All D values of a component are needed at once: `gradsurgery.backward` stores the D gradients.

    Source: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
    ICML 2018, definition 1.

    >>> import torch
    >>> Median()(torch.tensor([[1.0, 5.0], [2.0, -5.0], [100.0, 0.0]]))
    tensor([2., 0.])
    """

    name = "median"

    def __call__(self, gradients: Float[Tensor, "domains params"]) -> Float[Tensor, " params"]:
        """The update, worked out in pieces."""
        self.check_matrix(gradients)
        check_rows_finite(gradients)
        return mean_of_middle(gradients, (len(gradients) - 1) // 2)
