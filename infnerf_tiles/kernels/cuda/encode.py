"""Sum of trilinear feature grids over a node's chain, in Triton, forward and backward.

One lane holds 16 bytes of one sample's features, so that a vertex is one load; neighbouring lanes hold the rest of the
same vertex. The backward pass adds with atomics: the order of the sums, and with it their last bits, changes from run
to run.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from infnerf_tiles.kernels.arena import Arena, Gradients, table_is_dense
from infnerf_tiles.kernels.cuda.launch import launch, programs_for

__all__ = ["encode", "encode_into"]

_BLOCK = 128
_WARPS = 4


@triton.jit
def _table_row(vx, vy, vz, CELLS: tl.constexpr, TABLE: tl.constexpr, HASHED: tl.constexpr):
    """Row int32 of vertices in a node's table."""
    if HASHED:
        # primes of Teschner et al. 2003, applied to blocks of 2x2x2 vertices; the low 32 bits decide
        bx = (vx >> 1).to(tl.uint32)
        by = (vy >> 1).to(tl.uint32) * 2654435761
        bz = (vz >> 1).to(tl.uint32) * 805459861
        block = ((bx ^ by ^ bz) & ((TABLE >> 3) - 1)).to(tl.int32)
        row = block * 8 + (vx & 1) + 2 * (vy & 1) + 4 * (vz & 1)
    else:
        row = (vz * (CELLS + 1) + vy) * (CELLS + 1) + vx
    return row


@triton.jit(do_not_specialize=["capacity"])
def _encode_kernel(
    position, slot, beta, count, tables, level, parent, treelet, top_level, dense, dense_offset, dense_grids, out,
    capacity, base_cells,
    CELLS: tl.constexpr, TABLE: tl.constexpr, F: tl.constexpr, HASHED: tl.constexpr, COUNTED: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = lane // (F // WIDTH)
    part = lane % (F // WIDTH) * WIDTH
    inside = m < capacity
    live = inside
    if COUNTED:
        live = inside & (m < tl.load(count))
    f = tl.arange(0, WIDTH)
    px = tl.load(position + m * 3, mask=live, other=0.0)
    py = tl.load(position + m * 3 + 1, mask=live, other=0.0)
    pz = tl.load(position + m * 3 + 2, mask=live, other=0.0)
    s = tl.load(slot + m, mask=live, other=-1)
    weight = tl.load(beta + m, mask=live, other=0.0)
    tree = tl.load(treelet + s, mask=live, other=0)
    height = tl.load(level + s, mask=live, other=0) - tl.load(top_level + tree, mask=live, other=0)
    first = tl.load(dense_offset + tree, mask=live, other=0)
    grids = tl.load(dense_grids + tree, mask=live, other=0)
    total = tl.zeros([BLOCK, WIDTH], dtype=tl.float32)
    n = base_cells
    for g in range(tl.max(grids, 0)):
        has = g < grids
        scale = n.to(tl.float32)
        ux, uy, uz = px * scale, py * scale, pz * scale
        ix = tl.minimum(ux.to(tl.int32), n - 1)
        iy = tl.minimum(uy.to(tl.int32), n - 1)
        iz = tl.minimum(uz.to(tl.int32), n - 1)
        fx, fy, fz = ux - ix.to(tl.float32), uy - iy.to(tl.float32), uz - iz.to(tl.float32)
        corner = dense + (first + (iz * (n + 1) + iy) * (n + 1) + ix) * F + part
        for c in tl.static_range(8):
            w = (
                (fx if c & 1 else 1.0 - fx)
                * (fy if (c >> 1) & 1 else 1.0 - fy)
                * (fz if c >> 2 else 1.0 - fz)
            )  # fmt: skip
            offset = (((c >> 2) * (n + 1) + ((c >> 1) & 1)) * (n + 1) + (c & 1)) * F
            value = tl.load((corner + offset)[:, None] + f[None, :], mask=has[:, None], other=0.0)
            total += w[:, None] * value.to(tl.float32)
        first += ((n + 1) * (n + 1) * (n + 1) + 7) // 8 * 8
        n = n // 2
    while tl.max(s, 0) >= 0:
        has = s >= 0
        scale = (CELLS << tl.maximum(height, 0)).to(tl.float32)
        ux, uy, uz = px * scale, py * scale, pz * scale
        gx, gy, gz = ux.to(tl.int32), uy.to(tl.int32), uz.to(tl.int32)
        fx, fy, fz = ux - gx.to(tl.float32), uy - gy.to(tl.float32), uz - gz.to(tl.float32)
        ix, iy, iz = gx & (CELLS - 1), gy & (CELLS - 1), gz & (CELLS - 1)
        own = tables + s.to(tl.int64) * (TABLE * F) + part
        for c in tl.static_range(8):
            w = weight * (
                (fx if c & 1 else 1.0 - fx)
                * (fy if (c >> 1) & 1 else 1.0 - fy)
                * (fz if c >> 2 else 1.0 - fz)
            )  # fmt: skip
            row = _table_row(ix + (c & 1), iy + ((c >> 1) & 1), iz + (c >> 2), CELLS, TABLE, HASHED)
            value = tl.load((own + row * F)[:, None] + f[None, :], mask=has[:, None], other=0.0)
            total += w[:, None] * value.to(tl.float32)
        weight = tl.full([BLOCK], 1.0, dtype=tl.float32)
        s = tl.load(parent + s, mask=has, other=-1)
        height -= 1
    place = (out + m.to(tl.int64) * F + part)[:, None] + f[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _mark(marks, row, mask, BEHIND: tl.constexpr):
    """Mark the blocks of rows. BEHIND: whether the row before has been marked too."""
    if BEHIND:
        mask = mask & ((row & 7) == 0)
    # most have been: a look, which the nearest cache answers, costs less than another write
    place = marks + (row >> 3)
    fresh = tl.load(place, mask=mask, other=1) == 0
    tl.store(place, 1, mask=mask & fresh)


@triton.jit(do_not_specialize=["capacity", "slots", "dense_rows"])
def _backward_kernel(
    position, slot, beta, count, grad, level, parent, treelet, top_level, dense_offset, dense_grids,
    grad_tables, grad_dense, mark_tables, mark_dense,
    capacity, base_cells, slots, dense_rows,
    CELLS: tl.constexpr, TABLE: tl.constexpr, F: tl.constexpr, HASHED: tl.constexpr, COUNTED: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = lane // (F // WIDTH)
    part = lane % (F // WIDTH) * WIDTH
    live = m < capacity
    if COUNTED:
        live = live & (m < tl.load(count))
    f = tl.arange(0, WIDTH)
    s = tl.load(slot + m, mask=live, other=-1)
    # frozen samples learn nothing, nor does one that nobody sees
    live = live & (s >= 0) & (s < slots)
    # a name of its own: the loops below reuse `place` for pointers of another type
    given = (grad + m.to(tl.int64) * F + part)[:, None] + f[None, :]
    toward = tl.load(given, mask=live[:, None], other=0.0).to(tl.float32)
    live = live & (tl.max((toward != 0.0).to(tl.int32), 1) > 0)
    s = tl.where(live, s, -1)
    px = tl.load(position + m * 3, mask=live, other=0.0)
    py = tl.load(position + m * 3 + 1, mask=live, other=0.0)
    pz = tl.load(position + m * 3 + 2, mask=live, other=0.0)
    weight = tl.load(beta + m, mask=live, other=0.0)
    tree = tl.load(treelet + s, mask=live, other=0)
    height = tl.load(level + s, mask=live, other=0) - tl.load(top_level + tree, mask=live, other=0)
    first = tl.load(dense_offset + tree, mask=live, other=0)
    grids = tl.load(dense_grids + tree, mask=live, other=0)
    n = base_cells
    for g in range(tl.max(grids, 0)):
        scale = n.to(tl.float32)
        ux, uy, uz = px * scale, py * scale, pz * scale
        ix = tl.minimum(ux.to(tl.int32), n - 1)
        iy = tl.minimum(uy.to(tl.int32), n - 1)
        iz = tl.minimum(uz.to(tl.int32), n - 1)
        fx, fy, fz = ux - ix.to(tl.float32), uy - iy.to(tl.float32), uz - iz.to(tl.float32)
        lowest = first + (iz * (n + 1) + iy) * (n + 1) + ix
        for c in tl.static_range(8):
            w = (
                (fx if c & 1 else 1.0 - fx)
                * (fy if (c >> 1) & 1 else 1.0 - fy)
                * (fz if c >> 2 else 1.0 - fz)
            )  # fmt: skip
            row = lowest + ((c >> 2) * (n + 1) + ((c >> 1) & 1)) * (n + 1) + (c & 1)
            has = (g < grids) & (row < dense_rows)
            _mark(mark_dense, row, has & (part == 0), c & 1)
            place = (grad_dense + row * F + part)[:, None] + f[None, :]
            tl.atomic_add(place, w[:, None] * toward, mask=has[:, None], sem="relaxed")
        first += ((n + 1) * (n + 1) * (n + 1) + 7) // 8 * 8
        n = n // 2
    while tl.max(s, 0) >= 0:
        has = (s >= 0) & (s < slots)
        scale = (CELLS << tl.maximum(height, 0)).to(tl.float32)
        ux, uy, uz = px * scale, py * scale, pz * scale
        gx, gy, gz = ux.to(tl.int32), uy.to(tl.int32), uz.to(tl.int32)
        fx, fy, fz = ux - gx.to(tl.float32), uy - gy.to(tl.float32), uz - gz.to(tl.float32)
        ix, iy, iz = gx & (CELLS - 1), gy & (CELLS - 1), gz & (CELLS - 1)
        own = grad_tables + s.to(tl.int64) * (TABLE * F) + part
        marks = mark_tables + s.to(tl.int64) * (TABLE // 8)
        for c in tl.static_range(8):
            w = weight * (
                (fx if c & 1 else 1.0 - fx)
                * (fy if (c >> 1) & 1 else 1.0 - fy)
                * (fz if c >> 2 else 1.0 - fz)
            )  # fmt: skip
            row = _table_row(ix + (c & 1), iy + ((c >> 1) & 1), iz + (c >> 2), CELLS, TABLE, HASHED)
            fresh = has & (part == 0)
            if HASHED:
                # a vertex behind an even one shares its block, which has been marked
                if c & 1:
                    fresh = fresh & ((ix & 1) == 1)
                if (c >> 1) & 1:
                    fresh = fresh & ((iy & 1) == 1)
                if c >> 2:
                    fresh = fresh & ((iz & 1) == 1)
            _mark(marks, row, fresh, (c & 1) * (1 - HASHED))
            place = (own + row * F)[:, None] + f[None, :]
            tl.atomic_add(place, w[:, None] * toward, mask=has[:, None], sem="relaxed")
        weight = tl.full([BLOCK], 1.0, dtype=tl.float32)
        s = tl.load(parent + s, mask=s >= 0, other=-1)
        height -= 1


def encode_into(
    position: Tensor, slot: Tensor, beta: Tensor, arena: Arena, out: Tensor, *, count: Tensor | None = None
) -> None:
    """Write the features of M samples to `out` (float32, float16 or bfloat16 [M, F]); no gradient.

    Other arguments as in `encode`; rows that are not in use get zeros.
    """
    num, width = position.shape[0], min(arena.features, 16 // arena.tables.element_size())
    launch(
        _encode_kernel, programs_for(num * (arena.features // width), _BLOCK),
        position.contiguous(), slot.contiguous(), beta.contiguous(), slot if count is None else count,
        arena.tables.detach(), arena.level, arena.parent, arena.treelet, arena.top_level, arena.dense.detach(),
        arena.dense_offset, arena.dense_grids, out, num, arena.base_cells,
        CELLS=arena.cells, TABLE=arena.table_size, F=arena.features,
        HASHED=not table_is_dense(arena.cells, arena.table_size), COUNTED=count is not None,
        WIDTH=width, BLOCK=_BLOCK, num_warps=_WARPS,
    )  # fmt: skip


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        position: Tensor,
        slot: Tensor,
        beta: Tensor,
        arena: Arena,
        gradients: Gradients,
        known: Tensor | None,
        count: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        if known is None:
            out = torch.empty((position.shape[0], arena.features), dtype=dtype, device=position.device)
            encode_into(position, slot, beta, arena, out, count=count)
        else:
            out = known.view_as(known)
        ctx.save_for_backward(position, slot, beta, count)
        ctx.arena, ctx.gradients = arena, gradients
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        position, slot, beta, count = ctx.saved_tensors
        arena, gradients = ctx.arena, ctx.gradients
        num, width = position.shape[0], min(arena.features, 4)
        launch(
            _backward_kernel, programs_for(num * (arena.features // width), _BLOCK),
            position.contiguous(), slot.contiguous(), beta.contiguous(), slot if count is None else count,
            grad.contiguous(), arena.level, arena.parent, arena.treelet, arena.top_level,
            arena.dense_offset, arena.dense_grids,
            gradients.tables, gradients.dense, gradients.mark_tables, gradients.mark_dense,
            num, arena.base_cells, gradients.tables.shape[0], gradients.dense.shape[0],
            CELLS=arena.cells, TABLE=arena.table_size, F=arena.features,
            HASHED=not table_is_dense(arena.cells, arena.table_size), COUNTED=count is not None,
            WIDTH=width, BLOCK=_BLOCK, num_warps=_WARPS,
        )  # fmt: skip
        return (None,) * 9


def encode(
    position: Tensor,
    slot: Tensor,
    beta: Tensor,
    arena: Arena,
    gradients: Gradients,
    known: Tensor | None = None,
    *,
    count: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Features of M samples; the backward pass adds to `gradients` (not differentiable with respect to position).

    Args:
        position: float32 [M, 3] in the cube of the treelet root, [0, 1). slot: int32 [M]. beta: float32 [M].
        arena: resident nodes, tables and dense grids in float32 or float16. The trainable ones are slots
            0 .. len(gradients.tables)-1 and the first rows of `dense`; samples in other slots get no gradient.
        known: what `encode_into` gave for the same samples, which saves computing it again.
        count: int32 [1], rows in use of buffers of fixed capacity; the features of the others are zero.
        dtype: format of the result; sums are float32 in any case.

    Returns:
        float [M, F].
    """
    features: Tensor = _Encode.apply(
        gradients.anchor, position, slot, beta, arena, gradients, known, count, dtype
    )
    return features
