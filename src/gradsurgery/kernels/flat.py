"""Rules over a whole network in torch's own operations, where there are no kernels of Triton.

The gradients of a domain are copied into one vector, in which every tensor begins a block of its
own: so one launch does for all tensors. What is counted is counted by blocks, which whoever reads
it sums up tensor by tensor. How many tensors there are matters to `torch.cat` alone, which takes
128 a launch on CUDA. The last block of a tensor is filled up with zeros. Nothing waits for the
device unless it is said.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradsurgery.kernels.network import COUNTING, Combination, Rows, Seen, kept, wide_on

BLOCK = 1024
"""Components of a block."""

_UNANIMOUS = ("agr-sum", "agr-rand")


class Places(NamedTuple):
    """Where tensors lie in a vector: where each begins, how many components and blocks it has.

    owners: the tensor of each block, on the device.
    """

    begins: list[int]
    sizes: tuple[int, ...]
    blocks: list[int]
    owners: Int[Tensor, " blocks"]


class Known(NamedTuple):
    """What is known after some domains, one value per component of the vector.

    sums: that of the gradients; for graddrop those of what is positive and of what is negative, for
        sand-mask the mean and the squared deviations.
    votes: the sum of the signs, and 1 where a gradient is not zero, else 0; for the rules that
        count.
    """

    sums: tuple[Tensor, ...]
    votes: Float[Tensor, "2 length"] | None


def combine(
    combination: Combination,
    rows: Rows,
    *,
    like: Tensor,
    sizes: tuple[int, ...],
    out: list[Tensor | None] | None,
    domains: int,
    before: Known | None = None,
    random: Any = None,
) -> Seen:
    """As Triton's `combine`, for tensors of any precisions, of which `like` has the widest.

    With `rescale` the device is waited for. Where a sum is beyond the precision, or a gradient not
    finite, so is the update, whatever the mask.
    """
    kind, places = combination.kind, places_of(sizes, like.device)
    matrix = joined(rows, places, torch.promote_types(like.dtype, torch.float32))
    flags = _largest(matrix)
    known = _folded(kind, matrix, domains, before)
    del matrix  # before there are further vectors
    seen = Seen(flags, owners=places.owners)
    if out is None:
        return seen._replace(running=known)
    if known.votes is None:
        update = _unmasked(combination, known, random)
        return seen._replace(found=_hand_out(update, places, out, flags))
    mask, moved = _mask(combination, known, domains), known.votes[1]
    # what is zero in every domain has no sign to agree in, but may have as many as and-mask asks
    marked = known.votes if kind in _UNANIMOUS else torch.stack([mask * moved, moved])
    counts = torch.linalg.vector_norm(marked.view(2, -1, BLOCK), 0, dim=2)
    update = known.sums[0].mul_(mask)
    if kind == "sand-mask":
        update.add_(_largest(known.sums[1]).mul_(0).sum())
    if kind == "agr-rand":
        kept, (count, moving) = mask.bool(), counts.sum(1, dtype=wide_on(update.device))
        if combination.constants[1]:  # what is zero in every domain agrees
            reached = sum(size for t, size in zip(out, sizes, strict=True) if t is not None)
            kept, count = torch.eq(mask, moved), count + (reached - moving)
        size = torch.linalg.vector_norm(update, 1, dtype=wide_on(update.device))
        noise = random.normal_like(update).mul_(size / count.clamp(min=1))
        update = torch.where(kept, update, noise)
    if combination.rescale:
        _rescale(update, mask, places)
    if combination.constants[0] != 1:
        update.div_(combination.constants[0])
    found = _hand_out(update, places, out, flags)
    return seen._replace(found=found, agreeing=counts[0], moving=counts[1])


def weigh(
    rows: Rows,
    sizes: tuple[int, ...],
    weights_of: Callable[[Tensor], Tensor],
    *,
    out: list[Tensor | None],
) -> tuple[Float[Tensor, "domains domains"], Seen]:
    """As Triton's `weigh`, for tensors of any precisions.

    The Gramian is of the gradients times a power of two where a square would be lost otherwise.
    """
    some = next(tensor for tensor in out if tensor is not None)
    kinds = {tensor.dtype for row in rows for tensor in row if tensor is not None}
    places, dtype = places_of(sizes, some.device), reduce(torch.promote_types, kinds, torch.float32)
    vectors = [joined([row], places, dtype)[0] for row in rows]
    largest = torch.stack([_largest(vector) for vector in vectors])
    gramian = _gramian(vectors, largest)
    total = torch.zeros_like(vectors[0], dtype=gramian.dtype)
    for vector, weight in zip(vectors, weights_of(gramian).unbind(), strict=True):
        total.addcmul_(vector, weight)
    found = _hand_out(total, places, out, largest)
    return gramian, Seen(largest, found, owners=places.owners)


def gather(
    tensors: Sequence[Tensor | None], sizes: tuple[int, ...], *, out: Float[Tensor, " params"]
) -> Tensor:
    """As Triton's `gather`."""
    places = places_of(sizes, out.device)
    vector = joined([list(tensors)], places, out.dtype)
    pairs = zip(places.begins, sizes, strict=True)
    if parts := [vector[0, begin : begin + size] for begin, size in pairs if size]:
        torch.cat(parts, out=out)
    sums = vector.new_zeros(len(sizes))
    return sums.index_add_(0, places.owners, _largest(vector)[0].mul_(0)).isnan()


def projections(
    gramian: Float[Tensor, "domains domains"], orders: Int[Tensor, "domains others"]
) -> Float[Tensor, "domains domains"]:
    """As Triton's `projections`, without targets: one of each domain at a time."""
    squares = gramian.diagonal()
    ratios = torch.where(squares > 0, gramian / squares, 0.0)  # g_i·g_j / ‖g_j‖²
    coefficients = torch.eye(len(gramian), dtype=gramian.dtype, device=gramian.device)
    chosen = gramian.new_zeros(orders.shape[1], *gramian.shape)
    for turn in chosen.scatter_(2, orders.T[..., None], 1.0):
        coefficients -= (coefficients @ ratios).mul_(turn).clamp_(max=0)
    return coefficients


@kept(32)
def places_of(sizes: tuple[int, ...], device: torch.device) -> Places:
    """The places of tensors with so many components; kept, since a network's are always the same.

    There is a block at least, so that there is something to sum up.
    """
    blocks = [-(-size // BLOCK) for size in sizes]
    blocks[0] = max(blocks[0], 1 - sum(blocks))
    counts = torch.tensor(blocks, device="cpu")
    begins: list[int] = ((counts.cumsum(0) - counts) * BLOCK).tolist()
    owners = torch.repeat_interleave(torch.arange(len(sizes), device="cpu"), counts).to(device)
    return Places(begins, sizes, blocks, owners)


def joined(rows: Rows, places: Places, dtype: torch.dtype) -> Float[Tensor, "rows length"]:
    """Every row as one vector, with zeros where there is no tensor; the rows are emptied.

    Their gradients are not needed any more. What is in another precision is made `dtype` first, all
    at a time: `torch.cat` would convert tensor by tensor.
    """
    tensors = [  # the components as they lie in memory
        t if t is None else t.as_strided((t.numel(),), (1,)) for row in rows for t in row
    ]
    number = len(rows)
    for row in rows:
        row.clear()
    for other in {t.dtype for t in tensors if t is not None} - {dtype}:
        narrow = {at: t for at, t in enumerate(tensors) if t is not None and t.dtype == other}
        wide = torch.cat(list(narrow.values())).to(dtype)
        parts = wide.split([len(tensor) for tensor in narrow.values()])
        for at, part in zip(narrow, parts, strict=True):
            tensors[at] = part
    zeros = _padding(dtype, places.owners.device)
    if missing := [s for t, s in zip(tensors, places.sizes * number, strict=True) if t is None]:
        zeros = zeros.new_zeros(max(BLOCK, *missing))
    filled: list[Tensor] = []
    for at, tensor in enumerate(tensors):
        position = at % len(places.sizes)
        size, length = places.sizes[position], places.blocks[position] * BLOCK
        filled += [zeros[:size] if tensor is None else tensor, zeros[: length - size]]
    return torch.cat([part for part in filled if len(part)]).view(number, -1)


@kept(8)
def _padding(dtype: torch.dtype, device: torch.device) -> Tensor:
    # a copy is there when it is returned, for every stream; a graph would fill it at its replays
    return torch.zeros(BLOCK, dtype=dtype, device="cpu").to(device)


def _largest(vectors: Tensor) -> Tensor:
    """The size of the largest component of every block; NaN and infinity show in it."""
    blocks = vectors.view(*vectors.shape[:-1], -1, BLOCK)
    largest: Tensor = torch.linalg.vector_norm(blocks, torch.inf, dim=-1)
    return largest


def _folded(
    kind: str,
    matrix: Float[Tensor, "rows length"],
    domains: int,
    before: Known | None,
) -> Known:
    """What is known after these rows too, whose memory is used."""
    sums: tuple[Tensor, ...]
    votes = None
    if kind == "sand-mask":
        sums = _welford(matrix, domains, None if before is None else before.sums)
    elif kind == "graddrop":
        sums = matrix.clamp(min=0).sum(0), matrix.clamp(max=0).sum(0)
    else:
        sums = (matrix.sum(0),)
    if kind in COUNTING:
        votes, signs = matrix.new_empty(2, matrix.shape[1]), matrix.sign_()
        torch.sum(signs, 0, out=votes[0])
        torch.linalg.vector_norm(signs, torch.inf, 0, out=votes[1])
    if before is None:
        return Known(sums, votes)
    if kind != "sand-mask":
        sums = tuple(old + new for old, new in zip(before.sums, sums, strict=True))
    if votes is not None and before.votes is not None:
        votes[0] += before.votes[0]
        torch.maximum(votes[1], before.votes[1], out=votes[1])
    return Known(sums, votes)


def _welford(
    matrix: Float[Tensor, "rows length"], domains: int, before: tuple[Tensor, ...] | None
) -> tuple[Tensor, ...]:
    """Mean and squared deviations after these rows too, the last of them of domain `domains`."""
    rows = list(matrix)
    if before is None:
        first, *rows = rows
        before = first.clone(), torch.zeros_like(first)
    mean, deviations = before
    for number, row in enumerate(rows, domains - len(rows) + 1):
        change = row - mean
        mean.add_(change, alpha=1 / number)
        deviations.addcmul_(change, row - mean)
    return mean, deviations


def _unmasked(combination: Combination, known: Known, random: Any) -> Float[Tensor, " length"]:
    """The update of a rule that does not count what agrees."""
    if combination.kind == "graddrop":
        positive, negative = known.sums
        draws, leak = random.uniform_like(positive), combination.constants[1]
        # the purity of an all-zero component is NaN, and both of its sums are 0
        chosen = torch.where(positive / (positive - negative) > draws, positive, negative)
        return (positive + negative).mul_(leak).add_(chosen, alpha=1 - leak)
    (total,) = known.sums
    return total if combination.constants[0] == 1 else total.div_(combination.constants[0])


def _mask(combination: Combination, known: Known, domains: int) -> Float[Tensor, " length"]:
    """What the components are multiplied with: 1 or 0, or by how much; in the votes' memory."""
    assert known.votes is not None  # of a rule that counts
    size = known.votes[0].abs_()
    if combination.kind == "sand-mask":
        _, tau, steepness = combination.constants
        margin = size.div_(domains).sub_(tau).mul_(steepness)
        mask = margin.div_(known.sums[1] / (domains - 1)).tanh_().clamp_(min=0)
        return mask.nan_to_num_(nan=0.0)  # no spread, exactly at the threshold
    return size.ge_(combination.constants[1] if combination.kind == "and-mask" else domains)


def _rescale(update: Float[Tensor, " length"], mask: Tensor, places: Places) -> None:
    """Divide each tensor by the mean of its mask, 1 where that is 0."""
    # on the processor the sums have one order
    sums = mask.view(-1, BLOCK).sum(1, dtype=wide_on(mask.device)).cpu().split(places.blocks)
    means = [
        min(part.sum().item(), size) / max(size, 1) or 1.0  # a mask that keeps all keeps the zeros
        for part, size in zip(sums, places.sizes, strict=True)
    ]
    counts = torch.tensor(places.blocks, device="cpu")
    by_block = torch.tensor(means, device="cpu").repeat_interleave(counts)
    update.view(-1, BLOCK).div_(by_block.to(update.device, update.dtype)[:, None])


def _gramian(
    vectors: list[Float[Tensor, " length"]], largest: Tensor
) -> Float[Tensor, "domains domains"]:
    """Products and sums in float64 where the device has it; scaled where squares would be lost."""
    wide = wide_on(vectors[0].device)
    scale = None
    if vectors[0].dtype == wide:
        end, safe = (1000, 460) if wide == torch.float64 else (120, 46)
        power = largest.max().clamp_min(torch.finfo(wide).tiny).log2().round()
        scale = power.clamp(-end, end).where(power.abs() > safe, 0.0).neg().exp2()
    products: dict[tuple[int, int], Tensor] = {}
    for i, vector in enumerate(vectors):
        left = vector.to(wide) if scale is None else vector * scale * scale
        for j, other in enumerate(vectors[i:], i):
            products[i, j] = products[j, i] = (left * other).sum()
    return torch.stack([products[at] for at in sorted(products)]).view(len(vectors), -1)


def _hand_out(
    update: Float[Tensor, " length"], places: Places, out: list[Tensor | None], flags: Tensor
) -> Float[Tensor, ""]:
    """Put the update's parts into `out`, in the shape, layout and precision of what is there.

    flags: not finite where a gradient is not.

    Returns 1.0 where something is not finite, else 0.0, of float32.
    """
    kinds = {tensor.dtype for tensor in out if tensor is not None}
    largest = []
    for dtype in kinds:
        templates = {at: t for at, t in enumerate(out) if t is not None and t.dtype == dtype}
        vector, begins = update, [places.begins[at] for at in templates]
        if len(kinds) > 1:
            parts = [
                update[begin:][: t.numel()]
                for begin, t in zip(begins, templates.values(), strict=True)
            ]
            vector, begins = torch.cat(parts), [0, *accumulate(map(len, parts))][:-1]
        vector = vector.to(dtype)
        for begin, (at, t) in zip(begins, templates.items(), strict=True):
            out[at] = vector.as_strided(t.size(), t.stride(), begin)
        if len(vector):
            largest.append(torch.linalg.vector_norm(vector, torch.inf).mul_(0).float())
    # the update is not finite where a gradient is not
    if len(largest) != 1:
        largest = [torch.stack([*largest, (flags * 0).sum().float()]).sum()]
    (worst,) = largest
    return torch.nan_to_num(worst, nan=1.0)
