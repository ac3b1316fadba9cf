"""TorchJD's aggregators as rules, and rules as TorchJD's aggregators.

TorchJD (Quinton & Rey, "Jacobian Descent for Multi-Objective Optimization", 2024) is an optional
package, imported when one of these functions is called.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from gradsurgery.errors import ArgumentError, MissingPackageError, check_kind
from gradsurgery.hyperparameters import check_names
from gradsurgery.rules.base import Rule, check_rows_finite
from gradsurgery.rules.gramian import GramianRule

if TYPE_CHECKING:
    from torchjd.aggregation import Aggregator

PREFIX = "torchjd:"


class AggregatorRule(Rule):
    """g* = A(g_1, …, g_D) with any aggregator A of `torchjd.aggregation`.

    `gradsurgery.rule("torchjd:UPGrad")` builds one by name; its options are the aggregator's.

    aggregator: an instance, also of a class of your own.
    generator: seeds what the aggregator draws, which TorchJD takes from torch's global state; that
        state is left as it was. Without one the rule has its own, seeded with 0.

    >>> from torchjd.aggregation import UPGrad
    >>> AggregatorRule(UPGrad())(torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]))
    tensor([0.2929, 1.9004, 1.9004])
    """

    minimum_domains = 1

    def __init__(
        self, aggregator: "Aggregator", *, generator: torch.Generator | None = None
    ) -> None:
        check_kind("aggregator", aggregator, Callable, "one of torchjd.aggregation")
        self.name = PREFIX + type(aggregator).__name__
        self.aggregator = aggregator
        super().__init__(generator=generator)

    def __call__(self, gradients: Float[Tensor, "domains params"]) -> Float[Tensor, " params"]:
        """The aggregation of the rows."""
        self.check_matrix(gradients)
        check_rows_finite(gradients)
        seed = int(self.random.seed_on(torch.device("cpu")))
        accelerators = [gradients.device] if gradients.device.type == "cuda" else []
        with torch.random.fork_rng(accelerators), torch.no_grad():
            torch.default_generator.manual_seed(seed)
            for device in accelerators:
                torch.cuda.default_generators[device.index].manual_seed(seed)
            update: Tensor = self.aggregator(gradients)
        return update

    def state_dict(self) -> dict[str, Tensor]:
        """Empty; raises `ArgumentError` for the aggregators whose state TorchJD cannot restore."""
        from torchjd import Stateful

        if any(isinstance(module, Stateful) for module in self.aggregator.modules()):
            raise ArgumentError(
                f"the rule {self.name} keeps a state that cannot be saved; where a run has to be "
                "resumed use a rule of gradsurgery, e.g. 'gradvac'"
            )
        return {}


def aggregator_rule(
    name: str, options: Mapping[str, Any], generator: torch.Generator | None
) -> AggregatorRule:
    """The rule around the aggregator of that name in `torchjd.aggregation`.

    Raises `ArgumentError` for an unknown name, or options that the aggregator does not take.
    """
    known = _aggregators()
    if name not in known:
        raise ArgumentError(
            f"unknown aggregator {name!r}; torchjd.aggregation has {', '.join(sorted(known))}"
        )
    signature = inspect.signature(known[name])
    check_names(PREFIX + name, list(signature.parameters), options)
    options = {key: _number(value) for key, value in options.items()}
    required = [p.name for p in signature.parameters.values() if p.default is p.empty]
    if missing := [argument for argument in required if argument not in options]:
        raise ArgumentError(
            f"{PREFIX}{name}: missing {' and '.join(map(repr, missing))}; give it by --set "
            f"{PREFIX}{name}.{missing[0]}=VALUE, or gradsurgery.rule('{PREFIX}{name}', "
            f"{missing[0]}=VALUE)"
        )
    try:
        return AggregatorRule(known[name](**options), generator=generator)
    except ImportError as error:
        raise MissingPackageError(f"{PREFIX}{name}: {error}") from error
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{PREFIX}{name}: {error}") from error


def as_aggregator(rule: Rule) -> "Aggregator":
    """`rule` where TorchJD expects an aggregator, e.g. in `torchjd.autojac.jac_to_grad`.

    Rules that weigh the gradients by their Gramian become a `GramianWeightedAggregator`, whose
    weights TorchJD can report and whose `gramian_weighting` its other engine can use. As with
    TorchJD's, what comes out is a constant: it is not differentiable.

    >>> from gradsurgery.rules import AgrSum
    >>> as_aggregator(AgrSum())(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
    tensor([4., 0.])
    """
    check_kind("rule", rule, Rule, "a Rule, as gradsurgery.AgrSum()")
    _import()
    from torchjd.aggregation import Aggregator, GramianWeightedAggregator, Weighting

    class RuleAggregator(Aggregator):
        @torch.no_grad()
        def forward(self, matrix: Tensor, /) -> Tensor:
            return rule(matrix)

    class RuleWeighting(Weighting[Any]):
        def __init__(self, rule: GramianRule) -> None:
            super().__init__()
            self._rule = rule

        @torch.no_grad()
        def forward(self, gramian: Tensor, /) -> Tensor:
            self._rule.check_domains(len(gramian))
            return self._rule.weights(gramian.double().cpu()).to(gramian)

    class GramianRuleAggregator(GramianWeightedAggregator):
        @torch.no_grad()
        def forward(self, matrix: Tensor, /) -> Tensor:
            combined: Tensor = super().forward(matrix)  # type: ignore[arg-type]
            return combined

    if isinstance(rule, GramianRule):
        return GramianRuleAggregator(RuleWeighting(rule))
    return RuleAggregator()


def _aggregators() -> "dict[str, type[Aggregator]]":
    aggregation = _import()
    names = set(aggregation.__all__)
    names -= {"Aggregator", "WeightedAggregator", "GramianWeightedAggregator"}
    found = {name: getattr(aggregation, name) for name in names}
    return {name: kind for name, kind in found.items() if issubclass(kind, aggregation.Aggregator)}


def _number(value: Any) -> Any:
    """A number where a command line's text is one, a whole one where it can be."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    return int(number) if number.is_integer() else number


def _import() -> Any:
    try:
        from torchjd import aggregation
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            'this needs the package torchjd; install it with: pip install "gradsurgery[torchjd]"'
        ) from error
    return aggregation
