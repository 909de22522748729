"""Sum of trilinear feature grids over a node's chain, forward and backward.

f(x) = sum over the treelet's dense grids + sum over the chain (treelet root .. node) of grid_k(x), the node's own grid
weighted by beta. A table is indexed densely where (N+1)^3 fits; otherwise 2x2x2 vertex blocks are hashed, so that the
three low bits of a row say whether the vertex is odd in x, y and z. A trilinear cell has exactly one vertex of each of
the eight parities: the backward pass gives every task its own parities and needs neither atomics nor sorting.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from infnerf_tiles.kernels.arena import Arena, Gradients, table_is_dense
from infnerf_tiles.kernels.cpu.threads import parallel_region

__all__ = ["Gradients", "encode", "encode_into", "table_is_dense"]

_CHUNK = 512


@njit(cache=True, inline="always")
def _row(ix: int, iy: int, iz: int, cells: int, table_size: int, dense: bool) -> np.int64:
    """Row of vertex (ix, iy, iz) in a node's table."""
    if dense:
        return np.int64((iz * (cells + 1) + iy) * (cells + 1) + ix)
    # primes of Teschner et al. 2003, applied to blocks of 2x2x2 vertices
    h = np.uint32(ix >> 1) ^ (np.uint32(iy >> 1) * np.uint32(2654435761)) ^ (np.uint32(iz >> 1) * np.uint32(805459861))
    block = np.int64(h & np.uint32((table_size >> 3) - 1))
    return block * 8 + (ix & 1) + 2 * (iy & 1) + 4 * (iz & 1)


@functools.cache
def _forward_kernel(features: int) -> Callable[..., None]:
    """The forward kernel for a fixed number of features, so that the inner loop becomes one vector operation."""

    @njit(cache=True, parallel=True, fastmath={"contract"})
    def forward(  # type: ignore[no-untyped-def]
        position, slot, beta, tables, level, parent, treelet, top_level, dense, dense_offset, dense_grids,
        cells, base_cells, hashed_dense, out,
    ):  # fmt: skip
        num = position.shape[0]
        table_size = tables.shape[1]
        for part in prange((num + _CHUNK - 1) // _CHUNK):
            for m in range(part * _CHUNK, min((part + 1) * _CHUNK, num)):
                px, py, pz = position[m, 0], position[m, 1], position[m, 2]
                for f in range(features):
                    out[m, f] = np.float32(0.0)
                tree = treelet[slot[m]]
                first = dense_offset[tree]
                n = base_cells
                for _ in range(dense_grids[tree]):
                    scale = np.float32(n)
                    ux, uy, uz = px * scale, py * scale, pz * scale
                    ix, iy, iz = min(int(ux), n - 1), min(int(uy), n - 1), min(int(uz), n - 1)
                    fx, fy, fz = ux - np.float32(ix), uy - np.float32(iy), uz - np.float32(iz)
                    for corner in range(8):
                        cx, cy, cz = corner & 1, (corner >> 1) & 1, corner >> 2
                        w = (
                            (fx if cx else np.float32(1.0) - fx)
                            * (fy if cy else np.float32(1.0) - fy)
                            * (fz if cz else np.float32(1.0) - fz)
                        )
                        row = first + ((iz + cz) * (n + 1) + iy + cy) * (n + 1) + ix + cx
                        for f in range(features):
                            out[m, f] += w * dense[row, f]
                    first += ((n + 1) ** 3 + 7) // 8 * 8
                    n >>= 1
                s = slot[m]
                weight = beta[m]
                while s >= 0:
                    scale = np.float32(cells * 2.0 ** (level[s] - top_level[tree]))
                    ux, uy, uz = px * scale, py * scale, pz * scale
                    gx, gy, gz = int(ux), int(uy), int(uz)
                    fx, fy, fz = ux - np.float32(gx), uy - np.float32(gy), uz - np.float32(gz)
                    ix, iy, iz = gx & (cells - 1), gy & (cells - 1), gz & (cells - 1)
                    for corner in range(8):
                        cx, cy, cz = corner & 1, (corner >> 1) & 1, corner >> 2
                        w = (
                            (fx if cx else np.float32(1.0) - fx)
                            * (fy if cy else np.float32(1.0) - fy)
                            * (fz if cz else np.float32(1.0) - fz)
                        ) * weight
                        row = _row(ix + cx, iy + cy, iz + cz, cells, table_size, hashed_dense)
                        for f in range(features):
                            out[m, f] += w * tables[s, row, f]
                    weight = np.float32(1.0)
                    s = parent[s]

    return forward


@functools.cache
def _backward_kernel(features: int) -> Callable[..., None]:
    @njit(cache=True, parallel=True, fastmath={"contract"})
    def backward(  # type: ignore[no-untyped-def]
        position, slot, beta, gradient, level, parent, treelet, top_level, dense_offset, dense_grids,
        cells, base_cells, hashed_dense, num_levels, num_dense, grad_tables, grad_dense, mark_tables, mark_dense,
    ):  # fmt: skip
        num = position.shape[0]
        table_size = grad_tables.shape[1]
        # a task owns one of the four parities (y, z) of one grid of the chain: nobody else writes those rows
        for task in prange(4 * (num_levels + num_dense)):
            grid = task // 4
            oy, oz = task & 1, (task >> 1) & 1
            if grid >= num_levels:
                nested = grid - num_levels
                for m in range(num):
                    tree = treelet[slot[m]]
                    if slot[m] >= grad_tables.shape[0] or nested >= dense_grids[tree]:
                        continue
                    first = dense_offset[tree]
                    n = base_cells
                    for _ in range(nested):
                        first += ((n + 1) ** 3 + 7) // 8 * 8
                        n >>= 1
                    scale = np.float32(n)
                    ux, uy, uz = position[m, 0] * scale, position[m, 1] * scale, position[m, 2] * scale
                    ix, iy, iz = min(int(ux), n - 1), min(int(uy), n - 1), min(int(uz), n - 1)
                    fx, fy, fz = ux - np.float32(ix), uy - np.float32(iy), uz - np.float32(iz)
                    cy, cz = (iy & 1) ^ oy, (iz & 1) ^ oz
                    wyz = (fy if cy else np.float32(1.0) - fy) * (fz if cz else np.float32(1.0) - fz)
                    for cx in range(2):
                        w = wyz * (fx if cx else np.float32(1.0) - fx)
                        row = first + ((iz + cz) * (n + 1) + iy + cy) * (n + 1) + ix + cx
                        mark_dense[row >> 3] = 1
                        for f in range(features):
                            grad_dense[row, f] += w * gradient[m, f]
                continue
            for m in range(num):
                s = slot[m]
                tree = treelet[s]
                depth = level[s] - top_level[tree] - grid
                if s >= grad_tables.shape[0] or depth < 0:
                    continue
                weight = beta[m] if depth == 0 else np.float32(1.0)
                for _ in range(depth):
                    s = parent[s]
                scale = np.float32(cells * 2.0**grid)
                ux, uy, uz = position[m, 0] * scale, position[m, 1] * scale, position[m, 2] * scale
                gx, gy, gz = int(ux), int(uy), int(uz)
                fx, fy, fz = ux - np.float32(gx), uy - np.float32(gy), uz - np.float32(gz)
                ix, iy, iz = gx & (cells - 1), gy & (cells - 1), gz & (cells - 1)
                cy, cz = (iy & 1) ^ oy, (iz & 1) ^ oz
                wyz = weight * (fy if cy else np.float32(1.0) - fy) * (fz if cz else np.float32(1.0) - fz)
                for cx in range(2):
                    w = wyz * (fx if cx else np.float32(1.0) - fx)
                    row = _row(ix + cx, iy + cy, iz + cz, cells, table_size, hashed_dense)
                    mark_tables[s, row >> 3] = 1
                    for f in range(features):
                        grad_tables[s, row, f] += w * gradient[m, f]

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
            table_is_dense(arena.cells, arena.table_size), out.numpy(),
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
