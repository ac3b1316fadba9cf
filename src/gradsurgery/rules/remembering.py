"""Agr-EMA, and what a rule is that judges a component by what its gradients were before."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor
from typing_extensions import override

from gradsurgery.errors import ArgumentError
from gradsurgery.hyperparameters import Hyperparameter
from gradsurgery.kernels import compiled as kernel
from gradsurgery.rules.base import (
    NARROW,
    Rule,
    beyond_precision,
    check_rows_finite,
    divided,
    forget,
    pieces,
    reduction,
)


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


_SOURCE = "this project"


class AgrEMA(RememberingRule):
    """g*_n = Σ_d g_dn where the running means of all domains agree in sign, and 0 elsewhere.

    With t the number of the step:

        m_dn(t) = (1 − β)/(1 − β^t) Σ_{k<t} β^k g_dn(t − k)
        Φ_n = 1 if m_1n, m_2n, … m_Dn are all positive or all negative, else 0

    Agr-Sum asks whether one batch of every domain agrees; this asks whether the domains do. The
    sign of m_dn estimates that of the domain's expected gradient: batch noise of variance σ² is
    down to about σ²(1 − β)/(1 + β), and the estimate lags behind by β/(1 − β) steps. `docs/methods`
    derives it. β = 0 is Agr-Sum, as is the first step.

    beta: the decay β in [0, 1). Default 0.9.
    memory: "means", or "counts": m_dn is then a count that goes up or down with the sign of each
        step's gradient and stays within ±limit. It takes a quarter of the memory, weighs every
        step alike however large its gradient is, and does not need β.
    limit: of the counts, a whole number from 1 to 127. Default 8.
    reduction: "sum", as Agr-Sum, or "mean", which divides the update by D.

    The rule keeps Σ_k β^k g_dn(t − k), in at least float32: the factor before the sum is positive
    and the same for all domains, so it changes no sign. That is D P numbers (bytes, as counts), in
    the `state_dict`; during a step the D gradients are held beside them. Domain d is the d-th loss
    of every step, and the parameters are the same at every step: where `requires_grad` is switched
    in between, build a new rule. A gradient that is not there is a zero. The fraction of agreement
    reported is that of Φ, among the components whose m_dn are not zero in every domain. A step that
    meets what is not finite leaves the memory as it was. Loss scaling is refused with means, which
    would mix the scales of several steps.

    Source: this project; it is no rule of the paper. Agreement: Mansilla et al., "Domain
    Generalization via Gradient Surgery", ICCV 2021, eq. 2 and 3.

    >>> rule = AgrEMA(beta=0.5)
    >>> rule(torch.tensor([[1.0, -4.0], [1.0, 8.0]]))
    tensor([2., 0.])
    >>> rule(torch.tensor([[-0.25, 3.0], [1.0, 1.0]]))  # the sums are 0.25, 1 and 1.5, 5
    tensor([0.7500, 4.0000])
    """

    name = "agr-ema"
    unanimous = True

    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (
        Hyperparameter(
            "beta", 0.9, "decay β of the running means", high=1.0, open_high=True, source=_SOURCE
        ),
        Hyperparameter(
            "memory",
            "means",
            "of each component: its running mean, or a count of its signs",
            choices=("means", "counts"),
            source=_SOURCE,
        ),
        Hyperparameter("limit", 8, "where counts end", low=1, high=127, source=_SOURCE),
        reduction("sum", _SOURCE),
    )

    _memory: Tensor | None = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._counts = self.values["memory"] == "counts"
        # what earlier steps left of gradients has their scale; signs have none
        self.scale_equivariant = self._counts
        self._key = "counts" if self._counts else "sums"

    def state_dict(self) -> dict[str, Tensor]:
        """The decayed sums, or the counts, [domains, params], once there are some."""
        return {} if self._memory is None else {self._key: self._memory.cpu().clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the memory; an empty state forgets everything."""
        if unexpected := sorted(set(state) - {self._key}):
            raise ArgumentError(
                f"the state of {self.name} with memory {self.values['memory']} has the key "
                f"{self._key!r}, found {unexpected[0]!r}; load the state of a rule of the same "
                "options"
            )
        memory = state.get(self._key)
        if memory is not None:
            fits = memory.dtype == torch.int8 if self._counts else memory.is_floating_point()
            if memory.ndim != 2 or not fits:
                kind = "int8" if self._counts else "real numbers"
                raise ArgumentError(
                    f"the {self._key} of {self.name} are {kind} [domains, params], found "
                    f"{memory.dtype} of shape {list(memory.shape)}; load the state of a rule of "
                    "the same name"
                )
            memory = memory.clone()
        self._memory = memory

    @override
    def judge(
        self, gradients: Float[Tensor, "domains params"], finite: Bool[Tensor, ""]
    ) -> Verdict:
        narrow, memory = gradients.dtype, self._memory_for(gradients)
        gradients = _widened(gradients)
        update = torch.empty_like(gradients[0])
        marks = torch.empty(2, len(update), dtype=torch.bool, device=update.device)
        judged = self._judge(gradients, memory, update, marks)
        update = divided([update], self.divisor(len(gradients)))[0].to(narrow)
        sound = finite & judged
        if narrow != gradients.dtype:
            sound &= update.isfinite().all()
        torch.where(sound, gradients.to(memory.dtype), memory, out=memory)
        self._memory = memory
        return Verdict(update, marks[0], marks[1], sound)

    def _judge(
        self,
        gradients: Float[Tensor, "domains params"],
        memory: Real[Tensor, "domains params"],
        update: Float[Tensor, " params"],
        marks: Bool[Tensor, "2 params"],
    ) -> Bool[Tensor, ""]:
        """Make the memory after this step of the gradients; write the update and the marks,

        which components agree, and which are zero.

        Returns whether all of it is finite.
        """
        beta = self.values["beta"]
        if not self._counts and (name := kernel.name_for("judge_means", gradients, memory, update)):
            sound = kernel.judge_means(name, gradients, memory, beta, out=update, marks=marks)
            return torch.tensor(sound, device="cpu")
        bounds = []
        for rows, before, total, agrees, none in pieces(gradients, memory, update, *marks):
            torch.sum(rows, 0, out=total)
            self._remember(rows, before)
            lowest, highest = rows.amin(0), rows.amax(0)
            torch.logical_or(lowest > 0, highest < 0, out=agrees)
            torch.logical_and(lowest == 0, highest == 0, out=none)
            total.masked_fill_(~agrees, 0.0)
            # NaN where a sum is not finite
            bounds.append((lowest * 0 + highest * 0 + total * 0).sum())
        return torch.stack(bounds).isfinite().all()

    def _remember(self, rows: Float[Tensor, "domains params"], before: Tensor) -> None:
        """Make of this step's gradients the memory after it, in their place."""
        if self._counts:
            limit = self.values["limit"]
            rows.sign_().add_(before).clamp_(-limit, limit)
        else:
            rows.add_(before, alpha=self.values["beta"])

    def _memory_for(self, gradients: Float[Tensor, "domains params"]) -> Tensor:
        """The memory after the step before, where the gradients are."""
        self.check_domains(len(gradients))
        dtype = torch.int8 if self._counts else _widened(gradients[:0]).dtype
        if self._memory is None:
            return torch.zeros_like(gradients, dtype=dtype)
        if self._memory.shape != gradients.shape:
            (domains, components), (found, size) = self._memory.shape, gradients.shape
            raise ArgumentError(
                f"{self.name} remembers {domains} domains and {components} components, found "
                f"gradients of {found} and {size}; build a new rule, or load_state_dict({{}}), "
                "when domains or parameters change"
            )
        return self._memory.to(gradients.device, dtype)


def _widened(gradients: Tensor) -> Tensor:
    """In at least float32."""
    return gradients.float() if gradients.dtype in NARROW else gradients
