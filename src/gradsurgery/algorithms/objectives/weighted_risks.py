"""Group DRO, EQRM and GradNorm: the risks, weighed by how large they or their gradients are."""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from gradsurgery.algorithms.forward import Forward
from gradsurgery.algorithms.objectives.base import Batch, DomainLosses, Objective
from gradsurgery.algorithms.objectives.penalties import AnnealedObjective
from gradsurgery.errors import ArgumentError
from gradsurgery.hyperparameters import DOMAINBED, Hyperparameter

_CHEN = "Chen et al. 2018"


class GroupDRO(Objective):
    """Group distributionally robust optimisation: Σ_d q_d L_d, where q follows the largest losses:

        q_d ← q_d exp(η L_d), normalised to a sum of 1, detached, from all ones.

    Loss number d is D q_d L_d, so that their mean is the objective. q is the state.

    Source: Sagawa et al., "Distributionally Robust Neural Networks for Group Shifts", ICLR 2020,
    algorithm 1.
    """

    name = "group-dro"
    smooths_labels = True
    weighs_classes = True
    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (
        Hyperparameter("eta", 0.01, "step size η of the domains' weights q", source=DOMAINBED),
    )
    state_names = ("q",)

    @override
    def losses(self, forward: Forward, batches: Sequence[Batch], step: int) -> DomainLosses:
        risks = self.risks(forward, batches)  # q needs all of them before the first
        values = forward.values_of(risks)
        grown = self.remembered("q", torch.ones_like(values)).log() + self.values["eta"] * values
        self.state["q"] = q = grown.softmax(0)  # in logarithms, where no exp overflows
        while risks:
            yield len(batches) * q[-len(risks)] * risks.pop(0)


class EQRM(AnnealedObjective):
    """The α-quantile q of the domains' risks under a kernel density estimate,

        (1/D) Σ_d Φ((q − L_d) / h) = α,  h = 1.06 s D^(−1/5),

    with s the standard deviation of the risks (divisor D − 1) and Φ the normal distribution's. Loss
    number d is D w_d L_d with w_d = ∂q/∂L_d, detached: the mean of the losses is q, which scales
    and shifts with the risks. w_d is negative where a larger risk would narrow the distribution so
    much that q falls. The first `anneal` steps are erm's; then the optimiser's state is dropped.

    Source: Eastwood et al., "Probable Domain Generalization via Quantile Risk Minimization",
    NeurIPS 2022, algorithm 1, with DomainBed's bandwidth. Its code has the same q, but goes back
    through the ends of its bisection, which reaches no risks between the least and the largest but
    by h; and it goes on with the learning rate 1e-6, where a run here keeps its own.
    """

    name = "eqrm"
    smooths_labels = True
    weighs_classes = True
    minimum_domains = 2
    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (
        Hyperparameter(
            "quantile",
            0.75,
            "level α of the risks' quantile",
            high=1.0,
            open_low=True,
            open_high=True,
            source=DOMAINBED,
        ),
        Hyperparameter("anneal", 2500, "steps of erm before that", source=DOMAINBED),
    )
    first_weight = 0.0

    stage = AnnealedObjective.stage

    @override
    def weight(self, step: int) -> float:
        """Whether it is the quantile that is minimised at `step`."""
        return float(step > self.values["anneal"])

    @override
    def losses(self, forward: Forward, batches: Sequence[Batch], step: int) -> DomainLosses:
        risks = self.risks(forward, batches)  # the quantile needs all of them
        values = forward.values_of(risks)
        weights = torch.full_like(values, 1 / len(values))
        if self.weight(step):
            weights = quantile_gradient(values, self.values["quantile"])
        while risks:
            yield len(batches) * weights[-len(risks)] * risks.pop(0)


_GRID = 128
_ROUNDS = 8  # of a search that divides an interval by _GRID: to beyond float64


def quantile_gradient(risks: Float[Tensor, " domains"], level: float) -> Float[Tensor, " domains"]:
    """∂q/∂L_d of the quantile q that `EQRM` minimises; 1/D where all risks are equal.

    With u_d = (q − L_d)/h and p_d = φ(u_d) / Σ_i φ(u_i) it is p_d + Σ_i p_i u_i · ∂h/∂L_d.

    >>> quantile_gradient(torch.tensor([0.5, 0.5]), 0.75)
    tensor([0.5000, 0.5000])
    """
    apart = risks - risks[0]
    centred = apart - apart.mean()
    least = torch.finfo(risks.dtype).tiny
    scaled = centred / centred.abs().max().clamp_min(least)  # squares of tiny ones would be 0
    standard = scaled / scaled.square().sum().div(len(risks) - 1).sqrt().clamp_min(least)
    width = 1.06 * len(risks) ** -0.2  # h, like q from here on, in units of s
    shift = width * NormalDist().inv_cdf(level)
    low, high = standard.min() + shift, standard.max() + shift
    steps = torch.linspace(0, 1, _GRID + 1, dtype=risks.dtype, device=risks.device)
    for _ in range(_ROUNDS):
        places = low + (high - low) * steps
        below = torch.special.ndtr((places[:, None] - standard) / width).mean(1) < level
        low, high = places.where(below, low).max(), places.where(~below, high).min()
    u = (low - standard) / width
    near = u.square().div(-2).softmax(0)
    by_width = (near * u).sum() * width * standard / (len(risks) - 1)
    derivative: Tensor = near + by_width
    return derivative


class GradNorm(Objective):
    """mean_d w_d L_d, where the weights w (from all ones, with sum D) bring the gradients' norms

        G_d = ‖∇_W w_d L_d‖  towards  Ḡ r_d^α,  r_d = (L_d / L_d(0)) / mean of these ratios,

    by one gradient step a step on Σ_d |G_d − Ḡ r_d^α| in w, the target held constant. W is the
    network's last weight matrix: the domains share all layers, and this one is the cheapest.

    The state is w and the first losses L_d(0).

    Source: Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss Balancing", ICML 2018,
    eq. 1 and 2, algorithm 1.
    """

    name = "gradnorm"
    smooths_labels = True
    weighs_classes = True
    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = (
        Hyperparameter("alpha", 1.5, "strength α of the pull to equal rates", source=_CHEN),
        Hyperparameter("learning_rate", 0.025, "step size of the weights", source=_CHEN),
    )
    state_names = ("weights", "first")

    @override
    def losses(self, forward: Forward, batches: Sequence[Batch], step: int) -> DomainLosses:
        risks = self.risks(forward, batches)  # the weights need the norms of all of them
        values = forward.values_of(risks)
        last = last_weight(forward.model, risks[0])
        gradients = [_gradient(risk, last, materialize_grads=True) for risk in risks]
        norms = torch.stack([gradient.norm() for gradient in gradients]).to(values)
        weights = self.remembered("weights", torch.ones_like(values))
        first = self.remembered("first", values)
        self.state = {"weights": self._updated(weights, norms, values / first), "first": first}
        while risks:
            yield weights[-len(risks)] * risks.pop(0)

    def _updated(
        self,
        weights: Float[Tensor, " domains"],
        norms: Float[Tensor, " domains"],
        ratios: Float[Tensor, " domains"],
    ) -> Float[Tensor, " domains"]:
        """The weights after their step, none below 1e-3 before they are brought to the sum D."""
        weighted = weights * norms
        target = weighted.mean() * (ratios / ratios.mean()) ** self.values["alpha"]
        gradient = (weighted - target).sign() * norms
        moved: Tensor = (weights - self.values["learning_rate"] * gradient).clamp_min(1e-3)
        return moved.mul(len(moved)).div(moved.sum())


def last_weight(model: nn.Module, risk: Tensor) -> Tensor:
    """The last trained parameter that is a matrix or more and that the risk depends on."""
    for parameter in reversed([p for p in model.parameters() if p.requires_grad and p.ndim > 1]):
        if _gradient(risk, parameter, allow_unused=True) is not None:
            return parameter
    raise ArgumentError(
        f"gradnorm compares the gradients in the last weight matrix, and {type(model).__name__} "
        "trains none that its logits depend on; choose another method or train such a layer"
    )


def _gradient(risk: Tensor, weight: Tensor, **unused: Any) -> Any:
    """∇_W of the risk, which keeps its graph; `unused` says what it is where that lacks W."""
    try:
        return torch.autograd.grad(risk, weight, retain_graph=True, **unused)[0]
    except RuntimeError as error:
        if "donated buffers" not in str(error):
            raise
        raise ArgumentError(
            "gradnorm goes back from every domain's loss twice, and the network was compiled to go "
            "back once; set torch._functorch.config.donated_buffer = False before its first pass"
        ) from error
