"""Small networks of the kinds that matter, and gradients computed one domain at a time."""

import timm
import torch
from torch import nn
from torch.nn.functional import cross_entropy


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 12), nn.Tanh(), nn.Linear(12, 4))


def _cnn_batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(294, 4)
    )


def _vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, depth=2, num_classes=4
    )


def _seeded(build):
    def make():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return build()

    return make


MODELS = {
    "mlp": _seeded(_mlp),
    "cnn-batch-norm": _seeded(_cnn_batch_norm),
    "timm-vit": _seeded(_vit),
}


def domain_batches(domains: int, size: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(domains)
    return [
        (
            torch.randn(size, 3, 16, 16, generator=generator) + domain,
            torch.randint(4, (size,), generator=generator),
        )
        for domain in range(domains)
    ]


def separate_gradients(model: nn.Module, batches) -> torch.Tensor:
    """One plain backward pass per domain, flattened: [domains, params]."""
    rows = []
    for x, y in batches:
        gradients = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
        rows.append(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    return torch.stack(rows)
