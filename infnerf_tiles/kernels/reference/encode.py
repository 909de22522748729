"""Sum of trilinear feature grids over a node's chain in plain torch, differentiable by autograd."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infnerf_tiles.kernels.arena import VERTEX_BLOCK, Arena, Gradients, dense_grid_rows, table_is_dense


@dataclass(frozen=True, kw_only=True)
class _Corners:
    """The eight vertices around each of A samples in one grid of their chains."""

    sample: Tensor
    """int64 [A]: which samples have such a grid."""
    in_dense: bool
    """Whether `row` counts in `arena.dense` or in the rows of all tables, slot * T + row."""
    row: Tensor
    """int64 [A, 8]."""
    weight: Tensor
    """float [A, 8]: trilinear weight times beta."""


def encode(
    position: Tensor,
    slot: Tensor,
    beta: Tensor,
    arena: Arena,
    gradients: Gradients | None,
    known: Tensor | None = None,
    *,
    count: Tensor | None = None,
) -> Tensor:
    """Features of M samples, differentiable with respect to `arena.tables` and `arena.dense` where they require it.

    Args:
        position: float [M, 3] in the cube of the treelet root, [0, 1). slot: int32 [M]. beta: float [M].
        arena: resident nodes.
        gradients: the backward pass adds to these buffers too, as the fast twins do (then the trainable nodes are slots
            0 .. len(gradients.tables)-1, and samples of other nodes leave no gradient). None: autograd alone.
        known: ignored; the fast twins take features here that were computed before.
        count: int32 [1], rows in use of buffers of fixed capacity; the features of the others are zero.

    Returns:
        float [M, F] in the format of the tables.
    """
    if count is not None:
        n = int(count)
        used = encode(position[:n], slot[:n], beta[:n], arena, gradients)
        return torch.cat([used, used.new_zeros((position.shape[0] - n, arena.features))])
    features = arena.tables.new_zeros((position.shape[0], arena.features))
    flat_tables = arena.tables.reshape(-1, arena.features)
    for corners in _chain(position, slot, beta, arena):
        values = (arena.dense if corners.in_dense else flat_tables)[corners.row]
        features = features.index_add(0, corners.sample, (corners.weight[:, :, None] * values).sum(dim=1))
    if gradients is None:
        return features
    filled: Tensor = _FillBuffers.apply(  # type: ignore[no-untyped-call]
        features, gradients.anchor, position, slot, beta, arena, gradients
    )
    return filled


def encode_into(
    position: Tensor, slot: Tensor, beta: Tensor, arena: Arena, out: Tensor, *, count: Tensor | None = None
) -> None:
    """Write the features of M samples to `out` (float [M, F]); no gradient. Arguments as in `encode`."""
    with torch.no_grad():
        out.copy_(encode(position, slot, beta, arena, None, count=count))


def _chain(position: Tensor, slot: Tensor, beta: Tensor, arena: Arena) -> Iterator[_Corners]:
    """Every grid of the samples' chains: dense grids from fine to coarse, then nodes from the sample's own up."""
    at, node, weight = position.to(arena.tables.dtype), slot.long(), beta.to(arena.tables.dtype)
    tree = arena.treelet[node].long()
    first, cells = arena.dense_offset[tree], arena.base_cells
    for grid in range(int(arena.dense_grids.max())):
        sample = torch.nonzero(arena.dense_grids[tree] > grid).squeeze(1)
        scaled = at[sample] * cells
        corner = scaled.floor().clamp(max=cells - 1)
        row = torch.stack([_dense_row(c, cells) for c in _around(corner.long())], dim=1)
        yield _Corners(
            sample=sample,
            in_dense=True,
            row=first[sample, None] + row,
            weight=torch.stack(_trilinear(scaled - corner), dim=1),
        )
        first, cells = first + dense_grid_rows(cells), cells // 2
    sample = torch.arange(at.shape[0], device=at.device)
    while sample.numel():
        nodes_per_edge = torch.exp2((arena.level[node] - arena.top_level[tree]).to(at.dtype))
        scaled = at[sample] * (nodes_per_edge * arena.cells)[:, None]
        corner = scaled.floor()
        inside = corner.long() % arena.cells
        row = torch.stack([_table_row(c, arena.cells, arena.table_size) for c in _around(inside)], dim=1)
        yield _Corners(
            sample=sample,
            in_dense=False,
            row=node[:, None] * arena.table_size + row,
            weight=torch.stack(_trilinear(scaled - corner), dim=1) * weight[:, None],
        )
        node = arena.parent[node].long()
        more = node >= 0
        sample, node, tree = sample[more], node[more], tree[more]
        weight = torch.ones_like(weight[more])


def _around(corner: Tensor) -> list[Tensor]:
    """The eight vertices int64 [A, 3] of the cell with lower corner int64 [A, 3], x fastest."""
    return [corner + corner.new_tensor([c & 1, (c >> 1) & 1, c >> 2]) for c in range(8)]


def _trilinear(fraction: Tensor) -> list[Tensor]:
    """Weights [A] of the eight vertices for a place [A, 3] within the cell, [0, 1]."""
    low, high = 1.0 - fraction, fraction
    axes = [(low[:, a], high[:, a]) for a in range(3)]
    return [axes[0][c & 1] * axes[1][(c >> 1) & 1] * axes[2][c >> 2] for c in range(8)]


def _dense_row(vertex: Tensor, cells: int) -> Tensor:
    ix, iy, iz = vertex.unbind(1)
    return (iz * (cells + 1) + iy) * (cells + 1) + ix


def _table_row(vertex: Tensor, cells: int, table_size: int) -> Tensor:
    """Row int64 [A] of vertices int64 [A, 3] in a node's table."""
    if table_is_dense(cells, table_size):
        return _dense_row(vertex, cells)
    bx, by, bz = (vertex >> 1).unbind(1)
    # primes of Teschner et al. 2003, applied to blocks of 2x2x2 vertices; the modulus keeps the low bits only
    block = (bx ^ (by * 2654435761) ^ (bz * 805459861)) % (table_size // VERTEX_BLOCK)
    ox, oy, oz = (vertex & 1).unbind(1)
    return block * VERTEX_BLOCK + ox + 2 * oy + 4 * oz


class _FillBuffers(torch.autograd.Function):
    """Passes features on; in the backward pass adds their gradient to the buffers."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        anchor: Tensor,
        position: Tensor,
        slot: Tensor,
        beta: Tensor,
        arena: Arena,
        gradients: Gradients,
    ) -> Tensor:
        ctx.save_for_backward(position, slot, beta)
        ctx.arena, ctx.gradients = arena, gradients
        return features.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None, None, None]:
        position, slot, beta = ctx.saved_tensors
        gradients: Gradients = ctx.gradients
        own = slot < gradients.tables.shape[0]
        position, slot, beta, own_grad = position[own], slot[own], beta[own], grad[own]
        tables = gradients.tables.view(-1, grad.shape[1])
        mark_tables = gradients.mark_tables.view(-1)
        for corners in _chain(position, slot, beta, ctx.arena):
            buffer, marks = (gradients.dense, gradients.mark_dense) if corners.in_dense else (tables, mark_tables)
            share = corners.weight[:, :, None] * own_grad[corners.sample][:, None, :]
            buffer.index_add_(0, corners.row.flatten(), share.reshape(-1, grad.shape[1]).to(buffer.dtype))
            marks[corners.row.flatten() // VERTEX_BLOCK] = 1
        return grad, torch.zeros_like(gradients.anchor), None, None, None, None, None
