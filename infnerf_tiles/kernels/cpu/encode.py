"""Sum of trilinear feature grids over a node's chain, forward and backward.

f(x) = sum over the treelet's dense grids + sum over the chain (treelet root .. node) of grid_k(x), the node's own grid
weighted by beta. A table is indexed densely where (N+1)^3 fits; otherwise 2x2x2 vertex blocks are hashed, so that the
three low bits of a row say whether the vertex is odd in x, y and z. A trilinear cell has exactly one vertex of each of
the eight parities: rows split by parity belong to one task of the backward pass each, which needs neither atomics nor
sorting, and however they are split, a row sums its samples up in their order.

Rows and weights of many samples are computed side by side, one grid after another, then a sample's features as one
vector. Positions are scaled by powers of two, so that everything up to the sums is exact but for the weights' products.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from infnerf_tiles.kernels.arena import Arena, Gradients, table_is_dense
from infnerf_tiles.kernels.cpu.rows import gather_rows, scatter_rows
from infnerf_tiles.kernels.cpu.threads import parallel_region

__all__ = ["Gradients", "encode", "encode_into", "table_is_dense"]

_CHUNK = 128
"""Samples whose rows and weights are computed side by side; what they take stays in the first-level cache."""
_PART = 2048
"""Fewest samples that a forward task takes through one grid after another; more where there are many, since a task
reads each table anew."""
_LINE = 16
"""Values in a cache line."""


@njit(cache=True)
def _axis_of(scaled, highest, cells, factor, shift, dense, code, share):  # type: ignore[no-untyped-def]
    """Codes int32 [2, _CHUNK] and shares float32 [2, _CHUNK] of the cells' lower and upper vertex along one axis.

    A row is the sum of its axes' codes in a dense grid, otherwise the low bits of their exclusive or.
    """
    low, high = code[0], code[1]
    if dense:
        for j in range(_CHUNK):
            vertex = min(np.int32(scaled[j]), highest) & (cells - np.int32(1))
            low[j] = vertex * factor
            high[j] = vertex * factor + factor
    else:
        for j in range(_CHUNK):
            vertex = np.int32(scaled[j]) & (cells - np.int32(1))
            low[j] = (((vertex >> 1) * factor) << 3) | ((vertex & 1) << shift)
        for j in range(_CHUNK):
            vertex = (np.int32(scaled[j]) & (cells - np.int32(1))) + 1
            high[j] = (((vertex >> 1) * factor) << 3) | ((vertex & 1) << shift)
    for j in range(_CHUNK):
        fraction = scaled[j] - np.float32(min(np.int32(scaled[j]), highest))
        share[0, j] = np.float32(1.0) - fraction
        share[1, j] = fraction


@njit(cache=True)
def _axes_of(scaled, highest, cells, edge, dense, code, share):  # type: ignore[no-untyped-def]
    """`_axis_of` along x, y and z; the hash is of 2x2x2 blocks, with the primes of Teschner et al. 2003."""
    one, y, z = np.int32(1), np.int32(-1640531535), np.int32(805459861)
    if dense:
        y, z = np.int32(edge), np.int32(edge * edge)
    _axis_of(scaled[0], highest, cells, one, np.int32(0), dense, code[0], share[0])
    _axis_of(scaled[1], highest, cells, y, np.int32(1), dense, code[1], share[1])
    _axis_of(scaled[2], highest, cells, z, np.int32(2), dense, code[2], share[2])


@njit(cache=True)
def _plane_of(scaled, highest, parity, code, share):  # type: ignore[no-untyped-def]
    """Put the cell's vertex with this parity along z into the place of the lower one."""
    low, high, share_low, share_high = code[0], code[1], share[0], share[1]
    for j in range(_CHUNK):
        upper = (min(np.int32(scaled[j]), highest) ^ parity) & np.int32(1)
        low[j] ^= (low[j] ^ high[j]) & -upper
        # products with 0 and 1 are exact, and no branch
        u = np.float32(upper)
        share_low[j] = u * share_high[j] + (np.float32(1.0) - u) * share_low[j]


@njit(cache=True)
def _corners_of(code, share, z, wz, mask, dense, rows, weights):  # type: ignore[no-untyped-def]
    """Rows int32 and weights float32 [4 per plane, _CHUNK] of the vertices in planes [planes, _CHUNK] along z."""
    for corner in range(rows.shape[0]):
        row, weight = rows[corner], weights[corner]
        cx, cy, cz = code[0, corner & 1], code[1, (corner >> 1) & 1], z[corner >> 2]
        fx, fy, fz = share[0, corner & 1], share[1, (corner >> 1) & 1], wz[corner >> 2]
        if dense:
            for j in range(_CHUNK):
                row[j] = cx[j] + cy[j] + cz[j]
        else:
            for j in range(_CHUNK):
                row[j] = (cx[j] ^ cy[j] ^ cz[j]) & mask
        for j in range(_CHUNK):
            weight[j] = fx[j] * fy[j] * fz[j]


@functools.cache
def _forward_kernel(features: int) -> Callable[..., None]:
    """The forward kernel for a fixed number of features."""
    gather = gather_rows(features, 8, _CHUNK)

    @njit(cache=True)
    def part_of(  # type: ignore[no-untyped-def]
        begin, end, position, slot, beta, tables, level, parent, treelet, top_level, dense, dense_offset, dense_grids,
        cells, base_cells, hashed_dense, out,
    ):  # fmt: skip
        table_size = tables.shape[1]
        flat = tables.reshape(-1, tables.shape[2])
        scaled, share = np.zeros((3, _CHUNK), np.float32), np.empty((3, 2, _CHUNK), np.float32)
        code, weight = np.empty((3, 2, _CHUNK), np.int32), np.zeros(_CHUNK, np.float32)
        rows, weights = np.empty((8, _CHUNK), np.int32), np.empty((8, _CHUNK), np.float32)
        number, first = np.empty(_CHUNK, np.int64), np.empty(_CHUNK, np.int64)
        chain = np.empty(end - begin, np.int32)
        grids = 0
        for m in range(begin, end):
            chain[m - begin] = slot[m]
            grids = max(grids, dense_grids[treelet[slot[m]]])
            for f in range(features):
                out[m, f] = np.float32(0.0)
        n, behind, nested = base_cells, 0, 0
        more, own = True, True
        while more:
            in_dense = nested < grids
            more = in_dense
            m = begin
            while m < end:
                count = 0
                while m < end and count < _CHUNK:
                    s = chain[m - begin]
                    if s >= 0:
                        tree = treelet[s]
                        if in_dense:
                            scale = np.float32(n)
                            first[count] = dense_offset[tree] + behind
                            weight[count] = np.float32(1.0)
                            used = nested < dense_grids[tree]
                        else:
                            scale = np.float32(cells << (level[s] - top_level[tree]))
                            first[count] = np.int64(s) * table_size
                            weight[count] = beta[m] if own else np.float32(1.0)
                            used = True
                            above = parent[s]
                            chain[m - begin] = above
                            more |= above >= 0
                        if used:
                            number[count] = m
                            scaled[0, count] = position[m, 0] * scale
                            scaled[1, count] = position[m, 1] * scale
                            scaled[2, count] = position[m, 2] * scale
                            count += 1
                    m += 1
                highest = np.int32(n - 1) if in_dense else np.int32(2147483647)
                summed = in_dense or hashed_dense
                wide = np.int32(n if in_dense else cells)
                _axes_of(scaled, highest, wide, wide + 1, summed, code, share)
                for j in range(_CHUNK):
                    share[2, 0, j] *= weight[j]
                    share[2, 1, j] *= weight[j]
                _corners_of(code, share, code[2], share[2], np.int32(table_size - 1), summed, rows, weights)
                if in_dense:
                    for j in range(count):
                        gather(out, number[j], dense, first[j], rows, weights, j)
                else:
                    for j in range(count):
                        gather(out, number[j], flat, first[j], rows, weights, j)
            if in_dense:
                nested += 1
                behind += ((n + 1) ** 3 + 7) // 8 * 8
                n >>= 1
            else:
                own = False

    @njit(cache=True, parallel=True)
    def forward(  # type: ignore[no-untyped-def]
        position, slot, beta, tables, level, parent, treelet, top_level, dense, dense_offset, dense_grids,
        cells, base_cells, hashed_dense, part, out,
    ):  # fmt: skip
        num = position.shape[0]
        for k in prange((num + part - 1) // part):
            part_of(
                k * part, min((k + 1) * part, num), position, slot, beta, tables, level, parent, treelet, top_level,
                dense, dense_offset, dense_grids, cells, base_cells, hashed_dense, out,
            )  # fmt: skip

    return forward


def _planes(features: int) -> int:
    """Planes along z of a cell that one task of the backward pass looks after.

    Twice the tasks balance better, but two threads on one cache line would hold each other up.
    """
    return 1 if 4 * features >= _LINE else 2


@functools.cache
def _backward_kernel(features: int) -> Callable[..., None]:
    planes = _planes(features)
    scatter = scatter_rows(features, 4 * planes, _CHUNK)

    @njit(cache=True)
    def task_of(  # type: ignore[no-untyped-def]
        grid, parity, position, slot, beta, gradient, level, parent, treelet, top_level,
        dense_offset, dense_grids, cells, base_cells, hashed_dense, num_levels, slots, table_size, grad_table, marks,
    ):  # fmt: skip
        num = position.shape[0]
        scaled, share = np.zeros((3, _CHUNK), np.float32), np.empty((3, 2, _CHUNK), np.float32)
        code, weight = np.empty((3, 2, _CHUNK), np.int32), np.zeros(_CHUNK, np.float32)
        rows, weights = np.empty((4 * planes, _CHUNK), np.int32), np.empty((4 * planes, _CHUNK), np.float32)
        number, first = np.empty(_CHUNK, np.int64), np.empty(_CHUNK, np.int64)
        in_dense, nested = grid >= num_levels, grid - num_levels
        n, behind = cells, 0
        if in_dense:
            n = base_cells
            for _ in range(nested):
                behind += ((n + 1) ** 3 + 7) // 8 * 8
                n >>= 1
        highest = np.int32(n - 1) if in_dense else np.int32(2147483647)
        summed = in_dense or hashed_dense
        scale = np.float32(n) if in_dense else np.float32(n << grid)
        m = 0
        while m < num:
            count = 0
            while m < num and count < _CHUNK:
                s = slot[m]
                tree = treelet[s]
                depth = 0 if in_dense else level[s] - top_level[tree] - grid
                if s < slots and depth >= 0 and (not in_dense or nested < dense_grids[tree]):
                    weight[count] = np.float32(1.0) if in_dense or depth > 0 else beta[m]
                    for _ in range(depth):
                        s = parent[s]
                    first[count] = dense_offset[tree] + behind if in_dense else np.int64(s) * table_size
                    number[count] = m
                    scaled[0, count] = position[m, 0] * scale
                    scaled[1, count] = position[m, 1] * scale
                    scaled[2, count] = position[m, 2] * scale
                    count += 1
                m += 1
            _axes_of(scaled, highest, np.int32(n), np.int32(n + 1), summed, code, share)
            for j in range(_CHUNK):
                share[2, 0, j] *= weight[j]
                share[2, 1, j] *= weight[j]
            if planes == 1:
                _plane_of(scaled[2], highest, np.int32(parity), code[2], share[2])
            _corners_of(code, share, code[2], share[2], np.int32(table_size - 1), summed, rows, weights)
            for j in range(count):
                scatter(gradient, number[j], marks, grad_table, first[j], rows, weights, j)

    @njit(cache=True, parallel=True)
    def backward(  # type: ignore[no-untyped-def]
        position, slot, beta, gradient, level, parent, treelet, top_level, dense_offset, dense_grids,
        cells, base_cells, hashed_dense, num_levels, num_dense, grad_tables, grad_dense, mark_tables, mark_dense,
    ):  # fmt: skip
        slots, table_size = grad_tables.shape[0], grad_tables.shape[1]
        flat, marks = grad_tables.reshape(-1, grad_tables.shape[2]), mark_tables.reshape(-1)
        grids = num_levels + num_dense
        for task in prange(grids * (3 - planes)):
            parity, grid = task // grids, task % grids
            task_of(
                grid, parity, position, slot, beta, gradient, level, parent, treelet, top_level,
                dense_offset, dense_grids, cells, base_cells, hashed_dense, num_levels, slots, table_size,
                flat if grid < num_levels else grad_dense, marks if grid < num_levels else mark_dense,
            )  # fmt: skip

    return backward


def encode_into(
    position: Tensor, slot: Tensor, beta: Tensor, arena: Arena, out: Tensor, *, count: Tensor | None = None
) -> None:
    """Write the features of M samples to `out` (float32 [M, F]); no gradient. Arguments as in `encode`."""
    if count is not None:
        n = int(count)
        out[n:] = 0.0
        position, slot, beta, out = position[:n], slot[:n], beta[:n], out[:n]
    with parallel_region():
        _forward_kernel(arena.features)(
            position.contiguous().numpy(), slot.contiguous().numpy(), beta.contiguous().numpy(),
            arena.tables.detach().numpy(), arena.level.numpy(), arena.parent.numpy(), arena.treelet.numpy(),
            arena.top_level.numpy(), arena.dense.detach().numpy(), arena.dense_offset.numpy(),
            arena.dense_grids.numpy(), arena.cells, arena.base_cells,
            table_is_dense(arena.cells, arena.table_size), max(_PART, position.shape[0] // 8), out.numpy(),
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
    ) -> Tensor:
        if known is None:
            out = torch.empty((position.shape[0], arena.features))
            encode_into(position, slot, beta, arena, out)
        else:
            out = known.view_as(known)
        ctx.save_for_backward(position, slot, beta)
        ctx.arena, ctx.gradients = arena, gradients
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None, None]:
        position, slot, beta = ctx.saved_tensors
        arena, gradients = ctx.arena, ctx.gradients
        with parallel_region():
            _backward_kernel(arena.features)(
                position.contiguous().numpy(), slot.contiguous().numpy(), beta.contiguous().numpy(),
                grad.contiguous().numpy(), arena.level.numpy(),
                arena.parent.numpy(), arena.treelet.numpy(), arena.top_level.numpy(), arena.dense_offset.numpy(),
                arena.dense_grids.numpy(), arena.cells, arena.base_cells,
                table_is_dense(arena.cells, arena.table_size), gradients.num_levels, gradients.num_dense,
                gradients.tables.numpy(), gradients.dense.numpy(),
                gradients.mark_tables.numpy(), gradients.mark_dense.numpy(),
            )  # fmt: skip
        return torch.zeros(()), None, None, None, None, None, None


def encode(
    position: Tensor,
    slot: Tensor,
    beta: Tensor,
    arena: Arena,
    gradients: Gradients,
    known: Tensor | None = None,
    *,
    count: Tensor | None = None,
) -> Tensor:
    """Features of M samples; the backward pass adds to `gradients` (not differentiable with respect to position).

    Args:
        position: float32 [M, 3] in the cube of the treelet root, [0, 1). slot: int32 [M]. beta: float32 [M].
        arena: resident nodes; the trainable ones are slots 0 .. len(gradients.tables)-1 and the first rows of `dense`.
            A node's chain is trainable if the node is; samples of other nodes leave no gradient.
        known: what `encode_into` gave for the same samples, which saves computing it again.
        count: int32 [1], rows in use of buffers of fixed capacity; the features of the others are zero.

    Returns:
        float32 [M, F].
    """
    if count is not None:
        n = int(count)
        used = encode(position[:n], slot[:n], beta[:n], arena, gradients, None if known is None else known[:n])
        return torch.cat([used, used.new_zeros((position.shape[0] - n, arena.features))])
    features: Tensor = _Encode.apply(  # type: ignore[no-untyped-call]
        gradients.anchor, position, slot, beta, arena, gradients, known
    )
    return features
