"""A rule that judges each component by what every domain's gradients were, not by this step's."""

from abc import abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gradsurgery.rules.base import Rule, beyond_precision, check_rows_finite, forget


class Verdict(NamedTuple):
    """What such a rule makes of a step.

    update: in the precision of the gradients.
    agreeing: the components in which the domains agree and are not zero in all of them.
    zero: those that are zero in every domain.
    sound: whether update and memory are finite; the memory stays as it was where they are not.
    """

    update: Float[Tensor, " params"]
    agreeing: Bool[Tensor, " params"]
    zero: Bool[Tensor, " params"]
    sound: Bool[Tensor, ""]


class RememberingRule(Rule):
    """A rule with a memory of every component of every domain.

    Domain d is the d-th loss of every step, component n the n-th of the whole network, whatever
    reaches it. So `gs.backward` hands over the gradients of the whole network at once, [domains,
    params], with zeros where a domain does not reach a parameter.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        forget(cls, "__call__", RememberingRule, of=("judge",))

    @abstractmethod
    def judge(
        self, gradients: Float[Tensor, "domains params"], finite: Bool[Tensor, ""]
    ) -> Verdict:
        """The verdict for these gradients, whose memory may be used.

        finite: whether all of them are, on their device, which is not waited for. Where they are
            not, the rule's memory stays as it was and the update is not used.
        """

    def __call__(self, gradients: Float[Tensor, "domains params"]) -> Float[Tensor, " params"]:
        """The update for the gradients g_d of this step, which enter the rule's memory."""
        self.check_matrix(gradients)
        check_rows_finite(gradients)
        finite = torch.ones((), dtype=torch.bool, device=gradients.device)
        verdict = self.judge(gradients.detach().clone(), finite)
        if not verdict.sound:
            raise beyond_precision(dtype=gradients.dtype)
        return verdict.update
