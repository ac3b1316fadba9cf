"""The slow and obviously right way: one backward pass a sample, gradients stored and multiplied."""

import torch
from torch import nn


def stored_gradients(model, loss, x, y) -> dict[str, torch.Tensor]:
    """Per sample and parameter, in float64: {parameter: [samples, components]}."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    rows: dict[str, list[torch.Tensor]] = {name: [] for name, _ in named}
    for i in range(len(x)):
        value = loss(model(x[i : i + 1]), y[i : i + 1]).sum()
        found = torch.autograd.grad(value, [p for _, p in named], materialize_grads=True)
        for (name, _), gradient in zip(named, found, strict=True):
            rows[name].append(gradient.flatten().double())
    return {name: torch.stack(row) for name, row in rows.items()}


def stored_grams(model, loss, x, y) -> dict[str, torch.Tensor]:
    """By layer: the parameter's name up to the last dot."""
    grams: dict[str, torch.Tensor] = {}
    for name, row in stored_gradients(model, loss, x, y).items():
        layer = name.rpartition(".")[0] or type(model).__name__
        grams[layer] = grams.get(layer, 0) + row @ row.T
    return grams


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the lengths of the two gradients."""
    lengths = expected.diagonal().sqrt().clamp_min(1e-100)
    return ((found - expected).abs() / (lengths[:, None] * lengths)).max().item()


cross_entropy = nn.CrossEntropyLoss(reduction="none")
