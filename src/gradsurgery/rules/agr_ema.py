"""Agr-EMA: keep what the domains' running means agree on (an extension of Agr-Sum)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from gradsurgery.errors import ArgumentError
from gradsurgery.hyperparameters import Hyperparameter
from gradsurgery.rules.base import NARROW, reduction
from gradsurgery.rules.pieces import pieces
from gradsurgery.rules.remembering import RememberingRule, Verdict

_SOURCE = "this project"


class AgrEMA(RememberingRule):
    """g*_n = Σ_d g_dn where the running means of all domains agree in sign, and 0 elsewhere.

    With t the number of the step, and sign as in equation 2 (−1, 0 or +1):

        m_dn(t) = (1 − β)/(1 − β^t) Σ_{k<t} β^k g_dn(t − k)
        Φ_n = 1 if sign(m_1n) = sign(m_2n) = … = sign(m_Dn), else 0

    Agr-Sum asks whether one batch of every domain agrees; this asks whether the domains do. The
    sign of m_dn estimates that of the domain's expected gradient: batch noise of variance σ² is
    down to about σ²(1 − β)/(1 + β), and the estimate lags behind by β/(1 − β) steps. `docs/methods`
    derives it. β = 0 is Agr-Sum, as is the first step.

    beta: the decay β in [0, 1). Default 0.9.
    reduction: "sum", as Agr-Sum, or "mean", which divides the update by D.

    The rule keeps Σ_k β^k g_dn(t − k), in at least float32: the factor before the sum is positive
    and the same for all domains, so it changes no sign. That is D P numbers, in the `state_dict`;
    during a step the D gradients are held beside them. Domain d is the d-th loss of every step; a
    gradient that is not there is a zero. The fraction of agreement reported is that of Φ, among the
    components whose running means are not zero in every domain. A step that meets what is not
    finite leaves the state as it was. Loss scaling is refused: scales change between steps.

    Source: this project; it is no rule of the paper. Agreement: Mansilla et al., "Domain
    Generalization via Gradient Surgery", ICCV 2021, eq. 2 and 3.

    >>> rule = AgrEMA(beta=0.5)
    >>> rule(torch.tensor([[1.0, -4.0], [1.0, 8.0]]))
    tensor([2., 0.])
    >>> rule(torch.tensor([[-0.25, 3.0], [1.0, 1.0]]))  # the sums are 0.25, 1 and 1.5, 5
    tensor([0.7500, 4.0000])
    """

    name = "agr-ema"
    scale_equivariant = False  # what earlier steps left has their scale

    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (
        Hyperparameter(
            "beta", 0.9, "decay β of the running means", high=1.0, open_high=True, source=_SOURCE
        ),
        reduction("sum", _SOURCE),
    )

    _sums: Tensor | None = None

    def state_dict(self) -> dict[str, Tensor]:
        """The decayed sums [domains, params], once there are some."""
        return {} if self._sums is None else {"sums": self._sums.cpu().clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the sums; an empty state sets them back to 0."""
        if unexpected := sorted(set(state) - {"sums"}):
            raise ArgumentError(
                f"the state of {self.name} has the key 'sums', found {unexpected[0]!r}; load the "
                "state of a rule of the same name"
            )
        sums = state.get("sums")
        if sums is not None and not (sums.ndim == 2 and sums.is_floating_point()):
            raise ArgumentError(
                f"the sums of {self.name} are real numbers [domains, params], found {sums.dtype} "
                f"of shape {list(sums.shape)}; load the state of a rule of the same name"
            )
        self._sums = None if sums is None else sums.clone()

    @override
    def judge(
        self, gradients: Float[Tensor, "domains params"], finite: Bool[Tensor, ""]
    ) -> Verdict:
        narrow, sums = gradients.dtype, self._sums_for(gradients)
        gradients = _widened(gradients)
        update = torch.empty_like(gradients[0])
        agreeing, zero = torch.empty(2, len(update), dtype=torch.bool, device=update.device)
        bounds = []
        for rows, decayed, total, agrees, none in pieces(gradients, sums, update, agreeing, zero):
            torch.sum(rows, 0, out=total)
            rows.add_(decayed, alpha=self.values["beta"])  # the sums after this step
            lowest, highest = rows.amin(0), rows.amax(0)
            torch.logical_or(lowest > 0, highest < 0, out=agrees)
            torch.logical_and(lowest == 0, highest == 0, out=none)
            total.masked_fill_(~(agrees | none), 0.0)  # zero agrees, as in equation 2
            bounds.append((lowest * 0 + highest * 0).sum())  # NaN where a sum is not finite
        if self.values["reduction"] == "mean":
            update.div_(len(gradients))
        update = update.to(narrow)
        sound = finite & update.isfinite().all() & torch.stack(bounds).isfinite().all()
        torch.where(sound, gradients, sums, out=sums)
        self._sums = sums
        return Verdict(update, agreeing, zero, sound)

    def _sums_for(
        self, gradients: Float[Tensor, "domains params"]
    ) -> Float[Tensor, "domains params"]:
        """The sums after the step before, where the gradients are."""
        self.check_domains(len(gradients))
        if self._sums is None:
            return _widened(torch.zeros_like(gradients))
        if self._sums.shape != gradients.shape:
            (domains, components), (found, size) = self._sums.shape, gradients.shape
            raise ArgumentError(
                f"{self.name} has running means of {domains} domains and {components} components, "
                f"found gradients of {found} and {size}; build a new rule, or load_state_dict({{}})"
                ", when domains or parameters change"
            )
        return self._sums.to(gradients.device, _widened(gradients[:0]).dtype)


def _widened(gradients: Tensor) -> Tensor:
    """In at least float32."""
    return gradients.float() if gradients.dtype in NARROW else gradients
