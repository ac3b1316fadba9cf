"""Endless batches of every domain, and what a network takes of them."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from gradsurgery.data.image_set import ImageSet
from gradsurgery.errors import ArgumentError
from gradsurgery.kernels import INTEGER, POINTER, function, library
from gradsurgery.kernels.spans import in_spans
from gradsurgery.seeds import named_generator

PIECE = 3 * 50_000
"""Numbers (whole pixels) that go through all four operations while they lie in the cache."""


class DomainBatches:
    """Endless batches of each domain's images, without replacement within an epoch.

    Domain d's images are put in a random order, epoch after epoch, and dealt out in batches that
    run on from one epoch into the next: a domain smaller than the batch works. The order depends
    on (seed, domain, epoch) alone, hence not on the other domains.

    indices: per domain, positions in `images`.
    domains: whose batches to draw, in this order.
    batch_size: images per domain, at least 1.
    """

    def __init__(
        self,
        images: ImageSet,
        indices: Mapping[str, NDArray[np.int64]],
        *,
        domains: Sequence[str],
        batch_size: int,
        seed: int,
    ) -> None:
        if batch_size < 1:
            raise ArgumentError(f"batch size is {batch_size}, expected at least 1 image")
        for domain in domains:
            if domain not in indices or len(indices[domain]) == 0:
                raise ArgumentError(
                    f"domain {domain} has no images to draw batches from; domains with images: "
                    f"{', '.join(d for d, i in indices.items() if len(i)) or 'none'}"
                )
        self.images = images
        self.domains = tuple(domains)
        self.batch_size = batch_size
        self.seed = seed
        self._indices = {domain: indices[domain] for domain in domains}
        self._orders: dict[str, tuple[int, NDArray[np.int64]]] = {}

    def at(
        self, step: int
    ) -> list[tuple[UInt8[Tensor, "batch height width 3"], Int64[Tensor, " batch"]]]:
        """Images and labels of every domain at `step` (from 0): a pure function of the step."""
        return [
            _labelled(self.images, self.indices_at(domain, step))
            for domain in self.domains_at(step)
        ]

    def domains_at(self, step: int) -> tuple[str, ...]:
        """Whose batches they are: one of every domain at any step."""
        return self.domains

    def indices_at(self, domain: str, step: int) -> NDArray[np.int64]:
        """Positions in the image set of one domain's batch."""
        if step < 0:
            raise ArgumentError(f"step is {step}, expected 0 or more")
        count = len(self._indices[domain])
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        batch = np.empty(self.batch_size, dtype=np.int64)
        for epoch in range(places[0] // count, places[-1] // count + 1):
            inside = places // count == epoch
            batch[inside] = self.order(domain, epoch)[places[inside] % count]
        return batch

    def order(self, domain: str, epoch: int) -> NDArray[np.int64]:
        """The domain's images in the order of an epoch; the last one drawn is kept."""
        known = self._orders.get(domain)
        if known is not None and known[0] == epoch:
            return known[1]
        indices = self._indices[domain]
        generator = named_generator(self.seed, "batches", domain, epoch)
        order: NDArray[np.int64] = indices[
            torch.randperm(len(indices), generator=generator).numpy()
        ]
        self._orders[domain] = (epoch, order)
        return order


class SingleDomainBatches:
    """Batches as many and as large as those of `DomainBatches`, all from one domain at a time.

    At every step one of the D domains is chosen, each with probability 1 / D, and its images in a
    random order are dealt out to the D batches: no image is in two of them as long as the domain
    has D times the batch size; a smaller domain is dealt out again from the start. The choice and
    the order depend on (seed, step) alone. The control of the paper's figure 4.

    The arguments are those of `DomainBatches`.
    """

    def __init__(
        self,
        images: ImageSet,
        indices: Mapping[str, NDArray[np.int64]],
        *,
        domains: Sequence[str],
        batch_size: int,
        seed: int,
    ) -> None:
        self._all = DomainBatches(
            images, indices, domains=domains, batch_size=batch_size, seed=seed
        )

    def at(
        self, step: int
    ) -> list[tuple[UInt8[Tensor, "batch height width 3"], Int64[Tensor, " batch"]]]:
        """Images and labels of the D batches at `step` (from 0): a pure function of the step."""
        return [_labelled(self._all.images, batch) for batch in self.indices_at(step)]

    def domains_at(self, step: int) -> tuple[str, ...]:
        """Whose batches they are: the chosen domain's, D times."""
        if step < 0:
            raise ArgumentError(f"step is {step}, expected 0 or more")
        domains = self._all.domains
        generator = named_generator(self._all.seed, "single domain", step)
        chosen = int(torch.randint(len(domains), (), generator=generator))
        return (domains[chosen],) * len(domains)

    def indices_at(self, step: int) -> Int64[np.ndarray, "domains batch"]:
        """Positions in the image set of the D batches."""
        domains = self.domains_at(step)
        order = self._all.order(domains[0], step)
        return np.resize(order, (len(domains), self._all.batch_size))


Batches = DomainBatches | SingleDomainBatches


def _labelled(images: ImageSet, batch: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    return gather(images.images, batch), torch.from_numpy(images.label[batch])


def gather(
    images: NDArray[np.uint8], indices: NDArray[np.int64]
) -> UInt8[Tensor, "batch height width 3"]:
    """Copy the images at `indices` out of the memory map."""
    # Into NumPy's memory, which lies in huge pages: a quarter of the time of torch's.
    batch = np.empty((len(indices), *images.shape[1:]), dtype=np.uint8)
    np.take(images, indices, axis=0, out=batch, mode="clip")
    return torch.from_numpy(batch)


def normalize(
    images: UInt8[Tensor, "batch height width 3"],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    out: Float[Tensor, "batch 3 height width"] | None = None,
) -> Float[Tensor, "batch 3 height width"]:
    """(x / 255 - mean) / std per channel, in float32, bit-equal to torchvision's transforms.

    mean, std: of the red, green and blue channel, on the scale from 0 to 1; std above 0.
    out: an earlier result for images of this shape, whose memory is written again: fresh memory
    costs a third of the time on a CPU, and more where memory is short. Only where
    nothing needs that result any more.
    The result lies on the images' device, channels last in memory.
    """
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ArgumentError(
            f"mean {tuple(mean)} and std {tuple(std)}: expected three numbers each, std above 0"
        )
    on_cpu = images.device.type == "cpu"
    if out is None:
        # NumPy takes huge pages for its memory; torch's would take as long to touch as to fill.
        empty = (
            torch.from_numpy(np.empty(images.shape, np.float32))
            if on_cpu
            else torch.empty(images.shape, device=images.device)
        )
        out = empty.permute(0, 3, 1, 2)
    result = out.permute(0, 2, 3, 1)
    if on_cpu and library() is not None:
        _look_up(images.reshape(-1).numpy(), mean, std, result.view(-1).numpy())
    elif on_cpu:
        channels = np.array([mean, std], dtype=np.float32)
        _in_pieces(images.reshape(-1).numpy(), channels[0], channels[1], result.view(-1).numpy())
    else:
        center, scale = torch.tensor([mean, std], dtype=torch.float32, device=images.device)
        result.copy_(images).div_(255).sub_(center).div_(scale)
    return out


def _look_up(
    pixels: NDArray[np.uint8],
    mean: Sequence[float],
    std: Sequence[float],
    result: NDArray[np.float32],
) -> None:
    """Each channel has 256 results, which are computed once and looked up."""
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    center, scale = np.array([mean, std], dtype=np.float32)[:, :, None]
    table = (values - center) / scale
    call = function("look_up_rgb", (POINTER, POINTER, POINTER, INTEGER, INTEGER))
    pointers = pixels.ctypes.data, table.ctypes.data, result.ctypes.data
    in_spans(len(pixels), lambda a, b: call(*pointers, a, b), least=PIECE, multiple=3)


def _in_pieces(
    pixels: NDArray[np.uint8],
    mean: NDArray[np.float32],
    std: NDArray[np.float32],
    result: NDArray[np.float32],
) -> None:
    """The same over flat memory, piece by piece, each thread on a span of its own."""
    size = max(min(PIECE, len(pixels)), 1)
    means, stds = np.resize(mean, size), np.resize(std, size)

    def normalize_span(begin: int, end: int) -> None:
        memory = np.empty(size, np.float32)
        for start in range(begin, end, size):
            stop = min(start + size, end)
            piece = memory[: stop - start]
            np.copyto(piece, pixels[start:stop])
            np.divide(piece, np.float32(255), out=piece)
            np.subtract(piece, means[: len(piece)], out=piece)
            np.divide(piece, stds[: len(piece)], out=result[start:stop])

    in_spans(len(pixels), normalize_span, least=PIECE, multiple=3)
