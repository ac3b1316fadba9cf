"""What a rule is: the gradients of D domains in, one update out."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from gradsurgery.errors import ArgumentError, NonFiniteError
from gradsurgery.hyperparameters import Hyperparameter, checked_values, spelled
from gradsurgery.kernels import compiled as kernel
from gradsurgery.kernels.network import Combination, combined, kernels_for
from gradsurgery.rules.randomness import RandomSource

State = tuple[Tensor, ...]
NARROW = (torch.float16, torch.bfloat16)
"""Gradients of these precisions are summed in float32: float16 ends at 65,504."""

_PRECISIONS = (*NARROW, torch.float32, torch.float64)

RuleFunction = Callable[[Tensor], Tensor]

PIECE_PER_THREAD = 1 << 17
"""Components of long tensors per thread that are worked through at a time.

They stay in the processor's cache, so that several elementwise passes over them cost about as much
as one pass over memory: with three buffers of float32 such a piece fills about 1.5 MB of it.
"""


def forget(cls: type, shortcut: str, base: type, *, of: tuple[str, ...]) -> None:
    """Set a shortcut back to that of `base` in a class that defines anew what it is a shortcut of.

    What it inherits would compute the rule of its parent.
    """
    if any(_depth(cls, name) < _depth(cls, shortcut) for name in of):
        setattr(cls, shortcut, getattr(base, shortcut))


def _depth(cls: type, name: str) -> int:
    """How far up among the parents of a class, mixins included, `name` is defined."""
    defining = (i for i, parent in enumerate(cls.__mro__) if name in vars(parent))
    return next(defining, len(cls.__mro__))


def only_call_is_own(rule: "Rule") -> bool:
    """Whether the class of a rule defines nothing anew but what it is called for on a matrix."""
    steps = ("start", "fold", "finish", "weights", "judge")
    own = [_depth(type(rule), name) for name in steps if hasattr(rule, name)]
    return _depth(type(rule), "__call__") < min(own, default=0)


class Rule(ABC):
    """Combines the gradients of D source domains into one update.

    A rule is callable on a matrix, `rule(gradients)`: [domains, params] -> [params], and is handed
    to `gradsurgery.backward`. A subclass that implements the call alone works there too, with the
    memory of the D gradients; `ComponentwiseRule` and `GramianRule` need less.

    A subclass declares its `hyperparameters`, which are the arguments of its constructor and what
    `--set NAME.option` knows, and finds their values in `self.values`. Whatever is random in it
    draws from `self.random`: from `generator`, or from one of its own, seeded with 0.
    """

    name: str
    hyperparameters: ClassVar[tuple[Hyperparameter, ...]] = ()
    minimum_domains: int = 2
    scale_equivariant: bool = True
    """Whether s times the gradients give s times the update, for any s > 0."""
    unanimous: bool = False
    """Whether a component moves by the gradients only where those of all domains agree in sign."""

    def __init_subclass__(cls) -> None:
        forget(cls, "of_finite", Rule, of=("__call__",))
        if not hasattr(cls, "name"):
            cls.name = cls.__name__
        taken = inspect.signature(cls.__init__).parameters.values()
        keyword, any_keyword = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD
        if any(parameter.kind is any_keyword for parameter in taken):
            options = {"generator": None} | {h.name: h.default for h in cls.hyperparameters}
            cls.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
                [inspect.Parameter(name, keyword, default=d) for name, d in options.items()]
            )

    def __init__(self, *, generator: torch.Generator | None = None, **options: Any) -> None:
        self.values = checked_values(self.name, self.hyperparameters, options)
        self.random = RandomSource(generator)

    @override
    def __repr__(self) -> str:
        return spelled(self)

    @abstractmethod
    def __call__(self, gradients: Float[Tensor, "domains params"]) -> Float[Tensor, " params"]:
        """The update for the gradients g_d, one row a domain; the rows are left as they are.

        Raises `ArgumentError` on a wrong shape or too few domains, `NonFiniteError` on NaN or Inf.
        """

    def of_finite(self, gradients: Float[Tensor, "domains params"]) -> Any:
        """The same for gradients that are known to be finite, which need not be looked at again."""
        return self(gradients)

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs beside the rule's options; empty for most rules."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` gave; raises `ArgumentError` on any other key."""
        if state:
            raise ArgumentError(
                f"the rule {self.name} keeps no state, found {', '.join(sorted(state))}; load the "
                "state of a rule of the same name"
            )

    def divisor(self, domains: int) -> int:
        """What a sum over the domains is divided by: their number where "reduction" is "mean"."""
        return domains if self.values.get("reduction") == "mean" else 1

    def check_domains(self, domains: int) -> None:
        """Raise `ArgumentError` where the rule has no meaning for this many domains."""
        if domains < self.minimum_domains:
            raise ArgumentError(
                f"{self.name} compares the gradients of at least {self.minimum_domains} domains, "
                f"found {domains}; give one loss (or one row) per source domain, or use the rule "
                "'sum' or 'mean' for a single one"
            )

    def check_matrix(self, gradients: Tensor) -> None:
        """Raise unless `gradients` is a floating point matrix with enough rows."""
        if not isinstance(gradients, Tensor) or gradients.layout != torch.strided:
            found = getattr(gradients, "layout", type(gradients).__name__)
            raise ArgumentError(
                f"{self.name} expects a dense tensor of shape [domains, params], found {found}; "
                "stack one flat row per domain"
            )
        is_known = gradients.dtype in _PRECISIONS and gradients.device.type != "meta"
        if gradients.ndim != 2 or not is_known:
            meta = " on the device meta" if gradients.is_meta else ""
            raise ArgumentError(
                f"{self.name} expects floating point gradients of shape [domains, params], of 16, "
                f"32 or 64 bits, found {gradients.dtype} of shape {list(gradients.shape)}{meta}; "
                "stack one flat row per domain"
            )
        self.check_domains(len(gradients))


def reduction(default: str, source: str) -> Hyperparameter:
    """The hyperparameter of rules that sum over the domains or average."""
    meaning = "of the domains: mean divides their sum by D"
    return Hyperparameter("reduction", default, meaning, choices=("sum", "mean"), source=source)


class Consensus(NamedTuple):
    """What a component-wise rule makes of its states: an update per state, and what agrees.

    counts: the numbers of components that agree and are not zero in every domain, one a state; None
        for rules without Φ.
    zeros: the numbers of those that are zero in every domain.
    """

    updates: list[Tensor]
    counts: Tensor | None = None
    zeros: Tensor | None = None


class ComponentwiseRule(Rule):
    """A rule whose update at component n depends on g_1n … g_Dn (and on scalars of the network).

    The gradients arrive one domain at a time and are folded into a state of O(P) memory, whatever
    D is. The three functions own their arguments and may reuse their memory; a state's tensors are
    flat, one state per parameter tensor.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for shortcut in ("combination", "__call__"):
            forget(cls, shortcut, ComponentwiseRule, of=("start", "fold", "finish"))

    def combination(self, domains: int) -> Combination | None:
        """The kernel that does the same for a whole network on an accelerator; None without one."""
        return None

    def precision(self, dtype: torch.dtype, size: float) -> torch.dtype:
        """What gradients of `dtype` are folded in, whose largest components add up to `size`.

        At least float32; float64 where a sum would end beyond that, though a mean may not.
        """
        least = torch.float32 if dtype in NARROW else dtype
        return least if size <= torch.finfo(least).max else torch.float64

    @abstractmethod
    def start(self, gradient: Float[Tensor, " params"]) -> State:
        """The state after the first domain."""

    @abstractmethod
    def fold(self, state: State, gradient: Float[Tensor, " params"]) -> State:
        """The state after one more domain; `gradient` is left as it is."""

    @abstractmethod
    def finish(self, states: Sequence[State], domains: int) -> Consensus:
        """The updates of the whole network, one per state, and how many components agree."""

    def __call__(self, gradients: Float[Tensor, "domains params"]) -> Float[Tensor, " params"]:
        """The update for the gradients g_d, folded row by row."""
        self.check_matrix(gradients)
        gradients = gradients.detach()
        combination = self.combination(len(gradients))
        kernels = kernels_for([gradients[0]]) if gradients.numel() else None
        if combination is not None and kernels is not None:
            update, seen = combined(kernels, combination, gradients.contiguous(), self.random)
            if seen.found:
                check_rows_finite(gradients)
                raise beyond_precision(dtype=gradients.dtype)
            return update
        size = check_rows_finite(gradients) * len(gradients)
        wide = self.precision(gradients.dtype, size)
        first, *others = gradients
        state = self.start(first.to(wide, copy=True))
        for gradient in others:
            state = self.fold(state, gradient.to(wide))
        update = self.finish([state], len(gradients)).updates[0].to(gradients.dtype)
        # dividing by a fraction of the components makes them so many times larger, at most
        near = size * len(update) > torch.finfo(update.dtype).max
        return checked_update(update) if near else update


class FunctionRule(Rule):
    """A function [domains, params] -> [params] as a rule.

    What it makes of scaled gradients is not known, so that it does not go with a gradient scaler.
    """

    minimum_domains = 1
    scale_equivariant = False

    def __init__(self, function: RuleFunction) -> None:
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)

    def __call__(self, gradients: Float[Tensor, "domains params"]) -> Any:
        """What the function gives, which `gradsurgery.backward` checks."""
        self.check_matrix(gradients)
        check_rows_finite(gradients)
        return self.function(gradients)

    @override
    def of_finite(self, gradients: Float[Tensor, "domains params"]) -> Any:
        self.check_matrix(gradients)
        return self.function(gradients)


def as_rule(rule: Rule | RuleFunction) -> Rule:
    """The rule itself, or the function as one; raises `ArgumentError` for anything else."""
    if isinstance(rule, Rule):
        return rule
    found = (
        f"the class {rule.__name__} instead of {rule.__name__}()" if isinstance(rule, type) else ""
    )
    if found or not callable(rule):
        raise ArgumentError(
            f"rule is a Rule or a function, found {found or type(rule).__name__}; build one by "
            "name with gradsurgery.rule(...)"
        )
    return FunctionRule(rule)


def beyond_precision(parameter: str | None = None, dtype: torch.dtype | None = None) -> Exception:
    """The error of finite gradients whose combination is not."""
    where = "" if parameter is None else f" at parameter {parameter}"
    end = "" if dtype is None else f", whose {dtype} ends at {torch.finfo(dtype).max:.3g}"
    return NonFiniteError(
        f"the gradients{where} are finite and the update is not{end}; scale the losses down or use "
        "a wider precision",
        domain=None,
        parameter=parameter,
    )


def checked_update(update: Float[Tensor, " params"]) -> Float[Tensor, " params"]:
    """The update of finite gradients; raises `NonFiniteError` where it is not finite."""
    if update.numel() and not largest_size(update).isfinite():
        raise beyond_precision(dtype=update.dtype)
    return update


def largest_size(gradients: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """The size of the largest component, of at least one component; NaN where there is one."""
    if gradients.is_contiguous() and (name := kernel.name_for("largest", gradients)) is not None:
        return gradients.new_full((), kernel.largest(name, gradients.view(-1)))
    return torch.stack(torch.aminmax(gradients)).abs().max()


def check_rows_finite(gradients: Float[Tensor, "domains params"]) -> float:
    """The size of the largest component.

    Raises `NonFiniteError` naming the first domain and component that is NaN or infinite.
    """
    if gradients.numel() == 0:
        return 0.0
    if isfinite(largest := largest_size(gradients).item()):
        return largest
    domain, component = (~gradients.isfinite()).nonzero()[0].tolist()
    raise NonFiniteError(
        f"the gradient of domain {domain} is {gradients[domain, component].item()} at component "
        f"{component}, expected finite numbers; lower the learning rate or look at that domain's "
        "losses",
        domain=domain,
    )


def piece_length(tensor: Tensor) -> int:
    """How many components of `tensor` to take at a time; an accelerator takes all at once."""
    if tensor.device.type != "cpu":
        return max(tensor.shape[-1], 1)
    return PIECE_PER_THREAD * torch.get_num_threads()


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same components of every tensor, piece by piece along the last dimension."""
    length = piece_length(tensors[0])
    return zip(*(tensor.split(length, dim=-1) for tensor in tensors), strict=True)


def divided(totals: list[Tensor], divisor: int) -> list[Tensor]:
    """The sums over the domains, divided in place, where there is something to divide by."""
    return totals if divisor == 1 else [total.div_(divisor) for total in totals]


def scratch(like: Tensor, buffers: int) -> Tensor:
    """Uninitialised buffers for the temporaries of one piece: [buffers, piece]."""
    return like.new_empty(buffers, min(piece_length(like), like.shape[-1]))
