"""The generator of a random rule."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gradsurgery.errors import ArgumentError
from gradsurgery.kernels.network import sent, wide_on


def checked_generator(generator: Any) -> torch.Generator | None:
    """The generator or None; raises `ArgumentError` for anything else."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ArgumentError(
            f"generator is a torch.Generator, found a {type(generator).__name__}; give "
            "torch.Generator().manual_seed(0)"
        )
    return generator


class RandomSource:
    """Draws from the generator it is given, or from one of its own, seeded with 0."""

    def __init__(self, generator: torch.Generator | None) -> None:
        self._generator = checked_generator(generator)

    def normal_like(self, tensor: Tensor) -> Tensor:
        """Draws from N(0, 1) in the shape, precision and place of `tensor`."""
        generator = self._on(tensor.device)
        draws = torch.empty(tensor.shape, dtype=tensor.dtype, device=generator.device)
        return draws.normal_(generator=generator).to(tensor.device)

    def uniform_like(self, tensor: Tensor) -> Tensor:
        """Draws from the uniform distribution on [0, 1), in at least float32."""
        generator = self._on(tensor.device)
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        draws = torch.empty(tensor.shape, dtype=dtype, device=generator.device)
        return draws.uniform_(generator=generator).to(tensor.device)

    def seed_on(self, device: torch.device) -> Tensor:
        """A seed for what draws on `device`, which does not have to wait for it."""
        generator = self._on(device)
        seed = torch.randint(1 << 62, (), generator=generator, device=generator.device)
        return sent(seed, device)

    def orders_on(self, domains: int, device: torch.device) -> Tensor:
        """For every domain the others in a random order: int64 [domains, domains − 1]."""
        generator = self._on(device)
        dtype = wide_on(generator.device)
        draws = torch.rand(
            domains, domains, generator=generator, device=generator.device, dtype=dtype
        )
        draws.fill_diagonal_(2.0)  # a domain itself comes last, and is left out
        return sent(draws.argsort(1)[:, :-1].contiguous(), device)

    def pairs(self, domains: int) -> Iterator[tuple[int, int]]:
        """Every domain with each of the others, those of one domain in a random order."""
        generator = self._on(torch.device("cpu"))
        if generator.device.type != "cpu":  # all orders at once: each would be waited for
            for domain, order in enumerate(self.orders_on(domains, generator.device).tolist()):
                yield from ((domain, other) for other in order)
            return
        for domain in range(domains):
            others = [other for other in range(domains) if other != domain]
            order = torch.randperm(len(others), generator=generator, device=generator.device)
            yield from ((domain, others[position]) for position in order.tolist())

    def _on(self, device: torch.device) -> torch.Generator:
        if self._generator is None:
            self._generator = torch.Generator(device).manual_seed(0)
        return self._generator
