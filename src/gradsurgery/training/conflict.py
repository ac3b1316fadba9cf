"""What the steps of a run saw of the conflict between its domains."""

import math
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict


class ConflictLog(BaseModel):
    """One entry every so many steps; a value that is not finite, or that the rule lacks, is None.

    Nothing is computed for it: it holds what the step's rule computes anyway, on the gradients of
    that step's batches.

    step: counted from 1.
    losses: of each source domain.
    agreeing: fraction of the components that agree (equation 2) or that the rule's mask keeps.
    cosines: of the domains' gradients, in pairs, for rules that use inner products.
    layers: `agreeing` within each layer, by the layer's name in the model.
    sizes: numbers of components of these layers.
    """

    model_config = ConfigDict(extra="forbid")

    step: list[int] = []
    losses: list[list[float | None]] = []
    agreeing: list[float | None] = []
    cosines: list[list[list[float | None]] | None] = []
    layers: list[dict[str, float] | None] = []
    sizes: dict[str, int] = {}

    def append(
        self,
        step: int,
        losses: list[float],
        *,
        agreeing: float | None,
        cosines: list[list[float]] | None,
        by_parameter: Mapping[str, float] | None,
        sizes: Mapping[str, int],
    ) -> None:
        """Add one step.

        by_parameter: `agreeing` within each parameter tensor, by its name.
        sizes: numbers of components of these tensors.
        """
        self.step.append(step)
        self.losses.append(_finite(losses))
        self.agreeing.append(None if agreeing is None else _finite([agreeing])[0])
        self.cosines.append(None if cosines is None else [_finite(row) for row in cosines])
        self.layers.append(None if by_parameter is None else self._by_layer(by_parameter, sizes))

    def _by_layer(
        self, by_parameter: Mapping[str, float], sizes: Mapping[str, int]
    ) -> dict[str, float]:
        agreeing: dict[str, float] = {}
        total: dict[str, int] = {}
        for name, fraction in by_parameter.items():
            layer = name.rpartition(".")[0] or name
            agreeing[layer] = agreeing.get(layer, 0.0) + fraction * sizes[name]
            total[layer] = total.get(layer, 0) + sizes[name]
        self.sizes.update(total)
        return {layer: count / max(total[layer], 1) for layer, count in agreeing.items()}


def _finite(values: list[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]
