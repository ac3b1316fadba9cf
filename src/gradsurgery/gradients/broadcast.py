"""Parameters added to, multiplied with or put beside the samples: scales, tokens, positions."""

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from gradsurgery.gradients.products import wide
from gradsurgery.gradients.use import Parameters, Use


class BroadcastUse(Use):
    """y = x ∘ v(p) for an elementwise ∘, or [v(p), x], with v a change of shape.

    A stand-in with one v(p) per row takes v(p)'s place; its gradient is that of each row.

    view: v(p), either repeated along the rows or with a row of its own for each.
    repeated: v(p) with the leading dimension added along which it is repeated, None else.
    """

    def __init__(self, inputs: Tensor, parameters: Parameters, view: Tensor) -> None:
        super().__init__(inputs, parameters)
        self.view = view
        # of v as it is now, whatever is written into v(p) later
        self._edge = None if view.grad_fn is None else get_gradient_edge(view)
        missing = inputs.ndim - view.ndim
        self.repeated = missing > 0 or view.shape[0] == 1
        shape = [1] * missing + list(view.shape)
        self.shape = [inputs.shape[0], *shape[1:]]

    def stand_in(self) -> Tensor:
        """v(p) once per row, without a gradient."""
        view = self.view.detach()
        return view.expand(self.shape) if self.repeated else view

    def rows(self, role: str, gradient: Tensor, samples: int, span: slice) -> Tensor:
        """The transposed derivative of v applied to each sample's rows."""
        gradient = gradient.to(wide(gradient.dtype))
        each = len(gradient) // samples
        found = torch.stack(
            [self.total(role, gradient, slice(i * each, (i + 1) * each)) for i in range(samples)]
        )
        return found[:, span] if found.ndim > 1 else found

    def total(self, role: str, gradient: Tensor, part: slice) -> Tensor:
        """The transposed derivative of v applied to the part's rows."""
        if self.repeated:
            cotangent = gradient[part].sum(0).reshape(self.view.shape)
        else:
            cotangent = torch.zeros_like(gradient)
            cotangent[part] = gradient[part]
        parameter = self.parameters[role]
        if self._edge is None:
            return cotangent
        (found,) = torch.autograd.grad(
            self._edge, parameter, cotangent.to(self.view.dtype), retain_graph=True
        )
        return found
