"""Adam that skips entries without a gradient, in Triton: one pass over the marks, traffic only for what moves."""

import triton
import triton.language as tl
from torch import Tensor

from infnerf_tiles.kernels.arena import VERTEX_BLOCK, adam_scalars
from infnerf_tiles.kernels.cuda.launch import launch, programs_for

_ELEMENTS = 2048
_WARPS = 4


@triton.jit(do_not_specialize=["rows", "rate", "correction1", "correction2"])
def _adam_kernel(
    value, gradient, first, second, touched, half, scalars, enabled, rows, rate, correction1, correction2,
    beta1, beta2, rest1, rest2, eps,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, PER_BLOCK: tl.constexpr, BLOCKS: tl.constexpr, HALF: tl.constexpr,
    SCALARS: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """Rows of WIDTH entries (PADDED to a power of two), PER_BLOCK of them to a mark."""
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    marks = tl.load(touched + block, mask=block < rows // PER_BLOCK, other=0)
    if tl.max(marks.to(tl.int32), 0) > 0:
        if SCALARS:
            rate = tl.load(scalars)
            correction1 = tl.load(scalars + 1)
            correction2 = tl.load(scalars + 2)
        lane = tl.arange(0, BLOCKS * PER_BLOCK)
        row = tl.program_id(0) * (BLOCKS * PER_BLOCK) + lane
        marked = row < rows
        marked = marked & (tl.load(touched + row // PER_BLOCK, mask=marked, other=0) != 0)
        k = tl.arange(0, PADDED)
        place = row.to(tl.int64)[:, None] * WIDTH + k[None, :]
        column = (k < WIDTH)[None, :]
        g = tl.load(gradient + place, mask=marked[:, None] & column, other=0.0)
        moves = g != 0.0
        # whole rows are read and written, so that every access is as wide as can be
        some = marked & (tl.max(moves.to(tl.int32), 1) > 0)
        here = some[:, None] & column
        go = True
        if GATED:
            go = tl.load(enabled) != 0
        if go:
            m = tl.load(first + place, mask=here, other=0.0)
            v = tl.load(second + place, mask=here, other=0.0)
            x = tl.load(value + place, mask=here, other=0.0)
            m = tl.where(moves, beta1 * m + rest1 * g, m)
            v = tl.where(moves, beta2 * v + rest2 * g * g, v)
            x = tl.where(moves, x - rate * (m / correction1) / (tl.sqrt(v / correction2) + eps), x)
            tl.store(first + place, m, mask=here)
            tl.store(second + place, v, mask=here)
            tl.store(value + place, x, mask=here)
            if HALF:
                tl.store(half + place, x.to(half.dtype.element_ty), mask=here)
        tl.store(gradient + place, tl.zeros_like(g), mask=here)
        # behind all reads of the marks
        tl.debug_barrier()
        tl.store(touched + block, tl.zeros_like(marks), mask=block < rows // PER_BLOCK)


def adam(
    value: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    touched: Tensor,
    *,
    step: int = 0,
    rate: float = 0.0,
    beta1: float = 0.9,
    beta2: float = 0.99,
    eps: float = 1e-15,
    half: Tensor | None = None,
    scalars: Tensor | None = None,
    enabled: Tensor | None = None,
) -> None:
    """Update `value` in place, clear the gradient and the marks.

    Args:
        value, gradient, first, second: float32 [B, W], B blocks of W entries; entries with zero gradient keep their
            value and both moments.
        touched: uint8 [B]; blocks at 0 hold no gradient and are passed over.
        step: 1 at the first update (bias correction). rate: learning rate.
        half: float16 or bfloat16 [B, W], refreshed with the updated values.
        scalars: float32 [3] in place of `step` and `rate`, what `adam_scalars` gives; a captured graph reads it anew.
        enabled: uint8 [1]; at 0 nothing is updated, but the gradient and the marks are cleared.
    """
    blocks, width = value.shape
    per_block = VERTEX_BLOCK if width % VERTEX_BLOCK == 0 else 1
    width //= per_block
    padded = triton.next_power_of_2(width)
    together = max(1, _ELEMENTS // (padded * per_block))
    if scalars is None:
        rate, correction1, correction2 = adam_scalars(step, rate, beta1=beta1, beta2=beta2)
    else:
        correction1 = correction2 = 1.0
    launch(
        _adam_kernel, programs_for(blocks, together),
        value, gradient, first, second, touched, value if half is None else half,
        value if scalars is None else scalars, touched if enabled is None else enabled,
        blocks * per_block, rate, correction1, correction2, beta1, beta2, 1.0 - beta1, 1.0 - beta2, eps,
        WIDTH=width, PADDED=padded, PER_BLOCK=per_block, BLOCKS=together, HALF=half is not None,
        SCALARS=scalars is not None, GATED=enabled is not None, num_warps=_WARPS,
    )  # fmt: skip
