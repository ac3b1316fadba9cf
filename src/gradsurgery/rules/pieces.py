"""Long flat tensors are worked through in pieces that stay in the processor's cache.

Several elementwise passes over a piece cost about as much as one pass over memory. An accelerator
takes the whole tensor at once.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# Per thread: with three scratch buffers of float32 a piece fills about 1.5 MB of cache. A multiple
# of 16, so that random draws do not depend on where the pieces end.
PIECE_PER_THREAD = 1 << 17


def piece_length(tensor: Tensor) -> int:
    """How many components of `tensor` to take at a time."""
    if tensor.device.type != "cpu":
        return max(tensor.shape[-1], 1)
    return PIECE_PER_THREAD * torch.get_num_threads()


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same components of every tensor, piece by piece along the last dimension."""
    length = piece_length(tensors[0])
    return zip(*(tensor.split(length, dim=-1) for tensor in tensors), strict=True)


def scratch(like: Tensor, buffers: int) -> Tensor:
    """Uninitialised buffers for the temporaries of one piece: [buffers, piece]."""
    return like.new_empty(buffers, min(piece_length(like), like.shape[-1]))
