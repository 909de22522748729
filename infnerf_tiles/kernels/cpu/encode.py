"""Sum of trilinear feature grids over a node's chain, forward and backward.

f(x) = sum over the treelet's dense grids + sum over the chain (treelet root .. node) of grid_k(x), the node's own grid
weighted by beta. A table is indexed densely where (N+1)^3 fits; otherwise 2x2x2 vertex blocks are hashed, so that the
three low bits of a row say whether the vertex is odd in x, y and z. A trilinear cell has exactly one vertex of each of
the eight parities: rows split by parity belong to one task of the backward pass each, which needs neither atomics nor
sorting, and however they are split, a row sums its samples up in their order.

Samples go through one grid after another, many at a time: rows and weights side by side, then a sample's features as
one vector. Positions are scaled by powers of two, so that everything up to the weights' products is exact.
"""

from typing import Any

import numpy as np
import torch
from numba import get_num_threads, prange
from torch import Tensor

from infnerf_tiles.compiled import njit
from infnerf_tiles.kernels.arena import Arena, Gradients, table_is_dense
from infnerf_tiles.kernels.cpu.rows import (
    CHUNK,
    LANES,
    fetch_rows,
    gather_dense_rows,
    gather_hashed_rows,
    scatter_dense_rows,
    scatter_hashed_rows,
    write_dense_cells,
    write_hashed_cells,
)
from infnerf_tiles.kernels.cpu.threads import parallel_region, take

__all__ = ["Gradients", "encode", "encode_into", "table_is_dense"]

_PART = 2048
"""Fewest samples that a forward task takes through one grid after another, since a task reads each table anew."""
_LINE = 16
"""Values in a cache line."""
_TABLE = 1 << 20
"""Bytes of a table from which on a thread should read it once only: more than the second-level cache holds."""
_TABLES = 1 << 21
"""Bytes of all tables from which on rows are asked for ahead of their use; what is near costs less than to ask."""
_AHEAD = 8
"""Samples between asking for rows and using them."""


@njit(cache=True)
def _lanes_of(lines):  # type: ignore[no-untyped-def]
    """int32 [lines * CHUNK], its first value at the start of a cache line: a vector never reaches into a second one."""
    memory = np.empty(lines * CHUNK + _LINE, np.int32)
    skip = (-memory.ctypes.data // 4) % _LINE
    return memory[skip : skip + lines * CHUNK]


@njit(cache=True)
def _starts_of(level, parent, treelet, top_level, dense_offset, dense_grids, base_cells, table_size, slots):  # type: ignore[no-untyped-def]
    """Where the grids of a slot's chain start: (number of dense grids, rows int64 [grids, slots], dense ones first).

    -1 where the chain has no such grid. Node grids are counted from the treelet's root on.
    """
    nested, levels = 0, 0
    for s in range(slots):
        if treelet[s] >= 0:
            nested = max(nested, dense_grids[treelet[s]])
            levels = max(levels, level[s] - top_level[treelet[s]] + 1)
    starts = np.full((nested + levels, slots), -1, np.int64)
    for s in range(slots):
        tree = treelet[s]
        if tree < 0:
            continue
        behind, n = dense_offset[tree], base_cells
        for grid in range(dense_grids[tree]):
            starts[grid, s] = behind
            behind += ((n + 1) ** 3 + 7) // 8 * 8
            n >>= 1
        node = s
        # a slot no longer in use may hold any links
        for grid in range(nested + level[s] - top_level[tree], nested - 1, -1):
            if node >= 0:
                starts[grid, s] = np.int64(node) * table_size
                node = parent[node]
    return nested, starts


@njit(cache=True)
def _rest_of(position):  # type: ignore[no-untyped-def]
    """The last samples, fewer than LANES, in a buffer for as many."""
    rest, whole = np.zeros(3 * LANES, np.float32), position.shape[0] // LANES * LANES
    # not as slices: code that words the error of two that differ takes two seconds to compile
    for m in range(whole, position.shape[0]):
        for axis in range(3):
            rest[3 * (m - whole) + axis] = position[m, axis]
    return rest


@njit(cache=True)
def _shape_of(grid, nested, base_cells, cells, table_size):  # type: ignore[no-untyped-def]
    """(scale of positions, highest cell, mask of a cell within its node, vertices along an edge, mask of rows)."""
    if grid < nested:
        n = base_cells >> grid
        return np.float32(n), np.int32(n - 1), np.int32(n - 1), np.int32(n + 1), np.int32(-1)
    scale = np.float32(cells << (grid - nested))
    return scale, np.int32(2147483647), np.int32(cells - 1), np.int32(cells + 1), np.int32(table_size - 1)


@njit(cache=True)
def _write_cells(begin, end, position, rest, shape, parity, summed, places, weights, width, planes):  # type: ignore[no-untyped-def]
    """Write down the cells of a chunk's samples."""
    for m in range(begin, end, LANES):
        if summed:
            write_dense_cells(position, rest, m, shape, parity, places, weights, m - begin, width, planes)
        else:
            write_hashed_cells(position, rest, m, shape, parity, places, weights, m - begin, width, planes)


@njit(cache=True)
def _grid_of(  # type: ignore[no-untyped-def]
    begin, end, position, rest, slot, beta, table, starts, own, shape, summed, far, places, weights, out,
    width,
):  # fmt: skip
    even, edge, planes = np.int32(0), np.int64(shape[3]), (0, 0)
    # a grid that none of these samples has is soon passed over
    while begin < end and starts[slot[begin]] < 0:
        begin += 1
    begin -= begin % LANES
    for chunk in range(begin, end, CHUNK):
        stop = min(chunk + CHUNK, end)
        _write_cells(chunk, stop, position, rest, shape, even, summed, places, weights, width, planes)
        for m in range(chunk, stop):
            if far and m + _AHEAD < stop and starts[slot[m + _AHEAD]] >= 0:
                fetch_rows(
                    table, starts[slot[m + _AHEAD]], places, weights, m - chunk + _AHEAD, edge, width, planes
                )  # fmt: skip
            first = starts[slot[m]]
            if first < 0:
                continue
            weight = beta[m] if own > 0 and first == slot[m] * own else np.float32(1.0)
            if summed:
                gather_dense_rows(out, m, weight, table, first, places, weights, m - chunk, edge, width)
            else:
                gather_hashed_rows(out, m, weight, table, first, places, weights, m - chunk, edge, width)


@njit(cache=True, parallel=True)
def _forward(  # type: ignore[no-untyped-def]
    position, slot, beta, tables, level, parent, treelet, top_level, dense, dense_offset, dense_grids,
    cells, base_cells, hashed_dense, part, threads, far, out, width,
):  # fmt: skip
    num, table_size = slot.shape[0], tables.shape[1]
    flat, rest = tables.reshape(-1, tables.shape[2]), _rest_of(position)
    nested, starts = _starts_of(
        level, parent, treelet, top_level, dense_offset, dense_grids, base_cells, table_size, level.shape[0]
    )
    counter = np.zeros(1, np.int64)
    for _ in prange(threads):
        places, weights = _lanes_of(8), _lanes_of(5).view(np.float32)
        begin = take(counter) * part
        while begin < num:
            end = min(begin + part, num)
            for m in range(begin, end):
                for f in range(len(width)):
                    out[m, f] = np.float32(0.0)
            for grid in range(starts.shape[0]):
                shape = _shape_of(grid, nested, base_cells, cells, table_size)
                if grid < nested:
                    _grid_of(
                        begin, end, position, rest, slot, beta, dense, starts[grid], 0, shape, True, False,
                        places, weights, out, width,
                    )  # fmt: skip
                else:
                    _grid_of(
                        begin, end, position, rest, slot, beta, flat, starts[grid], table_size, shape, hashed_dense,
                        far and not hashed_dense, places, weights, out, width,
                    )  # fmt: skip
            begin = take(counter) * part


def _planes(features: int) -> int:
    """Planes along z of a cell that one task of the backward pass looks after.

    Twice the tasks balance better, but two threads on one cache line would hold each other up.
    """
    return 1 if 4 * features >= _LINE else 2


@njit(cache=True)
def _task_of(  # type: ignore[no-untyped-def]
    parity, position, rest, slot, beta, gradient, table, marks, starts, own, shape, summed, far, places, weights,
    width, planes,
):  # fmt: skip
    end, slots, edge = slot.shape[0], starts.shape[0], np.int64(shape[3])
    for chunk in range(0, end, CHUNK):
        stop = min(chunk + CHUNK, end)
        _write_cells(chunk, stop, position, rest, shape, parity, summed, places, weights, width, planes)
        for m in range(chunk, stop):
            if far and m + _AHEAD < stop:
                then = starts[slot[m + _AHEAD]] if slot[m + _AHEAD] < slots else -1
                if then >= 0:
                    fetch_rows(table, then, places, weights, m - chunk + _AHEAD, edge, width, planes)
            s = slot[m]
            first = starts[s] if s < slots else -1
            if first < 0:
                continue
            weight = beta[m] if own > 0 and first == s * own else np.float32(1.0)
            if summed:
                scatter_dense_rows(
                    gradient, m, weight, marks, table, first, places, weights, m - chunk, edge, width, planes
                )  # fmt: skip
            else:
                scatter_hashed_rows(
                    gradient, m, weight, marks, table, first, places, weights, m - chunk, edge, width, planes
                )  # fmt: skip


@njit(cache=True, parallel=True)
def _backward(  # type: ignore[no-untyped-def]
    position, slot, beta, gradient, level, parent, treelet, top_level, dense_offset, dense_grids,
    cells, base_cells, hashed_dense, grad_tables, grad_dense, mark_tables, mark_dense, threads, far,
    width, planes,
):  # fmt: skip
    slots, table_size = grad_tables.shape[0], grad_tables.shape[1]
    flat, marks = grad_tables.reshape(-1, grad_tables.shape[2]), mark_tables.reshape(-1)
    rest = _rest_of(position)
    nested, starts = _starts_of(
        level, parent, treelet, top_level, dense_offset, dense_grids, base_cells, table_size, slots
    )
    grids = starts.shape[0]
    counter = np.zeros(1, np.int64)
    for _ in prange(threads):
        places, weights = _lanes_of(8), _lanes_of(5).view(np.float32)
        task = take(counter)
        while task < grids * (3 - len(planes)):
            grid, parity = task % grids, np.int32(task // grids)
            shape = _shape_of(grid, nested, base_cells, cells, table_size)
            if grid < nested:
                _task_of(
                    parity, position, rest, slot, beta, gradient, grad_dense, mark_dense, starts[grid], 0,
                    shape, True, False, places, weights, width, planes,
                )  # fmt: skip
            else:
                _task_of(
                    parity, position, rest, slot, beta, gradient, flat, marks, starts[grid], table_size,
                    shape, hashed_dense, far and not hashed_dense, places, weights, width, planes,
                )  # fmt: skip
            task = take(counter)


def _part_of(num: int, arena: Arena) -> int:
    """Samples that a forward task takes; the last one has fewer."""
    tasks = get_num_threads() * (1 if arena.tables[0].nbytes > _TABLE else 4)
    return max(_PART, -(-num // (tasks * LANES)) * LANES)


def encode_into(
    position: Tensor, slot: Tensor, beta: Tensor, arena: Arena, out: Tensor, *, count: Tensor | None = None
) -> None:
    """Write the features of M samples to `out` (float32 [M, F]); no gradient. Arguments as in `encode`."""
    if count is not None:
        n = int(count)
        out[n:] = 0.0
        position, slot, beta, out = position[:n], slot[:n], beta[:n], out[:n]
    with parallel_region():
        _forward(
            position.contiguous().numpy(), slot.contiguous().numpy(), beta.contiguous().numpy(),
            arena.tables.detach().numpy(), arena.level.numpy(), arena.parent.numpy(), arena.treelet.numpy(),
            arena.top_level.numpy(), arena.dense.detach().numpy(), arena.dense_offset.numpy(),
            arena.dense_grids.numpy(), arena.cells, arena.base_cells,
            table_is_dense(arena.cells, arena.table_size), _part_of(position.shape[0], arena), get_num_threads(),
            arena.tables.nbytes > _TABLES, out.numpy(), (0,) * arena.features,
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
            _backward(
                position.contiguous().numpy(), slot.contiguous().numpy(), beta.contiguous().numpy(),
                grad.contiguous().numpy(), arena.level.numpy(),
                arena.parent.numpy(), arena.treelet.numpy(), arena.top_level.numpy(), arena.dense_offset.numpy(),
                arena.dense_grids.numpy(), arena.cells, arena.base_cells,
                table_is_dense(arena.cells, arena.table_size), gradients.tables.numpy(), gradients.dense.numpy(),
                gradients.mark_tables.numpy(), gradients.mark_dense.numpy(), get_num_threads(),
                gradients.tables.nbytes > _TABLES, (0,) * arena.features, (0,) * _planes(arena.features),
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
    features: Tensor = _Encode.apply(gradients.anchor, position, slot, beta, arena, gradients, known)
    return features
