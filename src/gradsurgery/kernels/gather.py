"""A batch out of the pixels on a GPU, as the network takes it, in one kernel written in Triton."""

from typing import no_type_check

import triton
import triton.language as tl
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from gradsurgery.kernels.network import launch

_BLOCK = 1024


def gather_rgb(
    images: UInt8[Tensor, "images height width 3"],
    positions: Int64[Tensor, " batch"],
    table: Float[Tensor, "3 256"],
    out: Float[Tensor, "batch 3 height width"],
) -> None:
    """out[b, c, y, x] = table[c, images[positions[b], y, x, c]].

    out: contiguous, or channels last in memory.
    """
    batch, _, height, width = out.shape
    pixels, last = height * width, not out.is_contiguous()
    blocks = -(-pixels * (3 if last else 1) // _BLOCK)
    launch(
        _gather_rgb,
        (batch * blocks,),
        images,
        positions,
        table,
        out,
        pixels,
        blocks,
        LAST=last,
        BLOCK=_BLOCK,
    )


@triton.jit
@no_type_check
def _gather_rgb(  # noqa: PLR0917
    images, positions, table, out, pixels, blocks, LAST: tl.constexpr, BLOCK: tl.constexpr
):
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    at = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    image = images + tl.load(positions + batch) * pixels * 3
    result = out + batch * pixels * 3
    if LAST:
        inside = at < pixels * 3
        value = tl.load(image + at, mask=inside, other=0).to(tl.int32)
        number = tl.load(table + (at % 3) * 256 + value, mask=inside, other=0.0)
        tl.store(result + at, number, mask=inside)
    else:
        inside = at < pixels
        for channel in tl.static_range(3):
            value = tl.load(image + at * 3 + channel, mask=inside, other=0).to(tl.int32)
            number = tl.load(table + channel * 256 + value, mask=inside, other=0.0)
            tl.store(result + channel * pixels + at, number, mask=inside)
