"""The dense grids of a treelet: made from the treelet above, folded into one base at commit."""

import numpy as np
import torch
from torch import Tensor

from infnerf_tiles.arrays import Float32
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.kernels import for_device
from infnerf_tiles.kernels.arena import Arena, dense_grid_rows


def grid_vertices(cells: int) -> Float32:
    """Vertex positions float32 [(n+1)^3, 3] of a dense grid over the unit cube: row (z (n+1) + y) (n+1) + x."""
    axis = np.arange(cells + 1, dtype=np.float32) / np.float32(cells)
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    return np.stack([x.ravel(), y.ravel(), z.ravel()], axis=1)


def interpolate_dense(grid: Tensor, cells: int, position: Tensor) -> Tensor:
    """Trilinear interpolation of grid [(n+1)^3 (or more), F] at positions [M, 3] in [0, 1]: [M, F]."""
    u = position * cells
    corner = u.floor().clamp(0, cells - 1)
    fraction = u - corner
    ix, iy, iz = corner.long().unbind(1)
    out = grid.new_zeros((position.shape[0], grid.shape[1]))
    for c in range(8):
        cx, cy, cz = c & 1, (c >> 1) & 1, c >> 2
        weight = grid.new_ones(position.shape[0])
        for axis, odd in enumerate((cx, cy, cz)):
            f = fraction[:, axis].to(grid.dtype)
            weight = weight * (f if odd else 1.0 - f)
        row = ((iz + cz) * (cells + 1) + iy + cy) * (cells + 1) + ix + cx
        out += weight[:, None] * grid[row]
    return out


def fold_corrections(dense: Tensor, shape: FieldShape, grids: int) -> Tensor:
    """Sum nested dense grids into the finest one: exact, since coarse vertices are fine vertices.

    Args:
        dense: float32 [rows, F], grids with base_cells, base_cells / 2, ... cells one after another.

    Returns:
        float32 [base_rows, F], padding rows zero.
    """
    base = dense.new_zeros((shape.base_rows, shape.features))
    vertices = torch.from_numpy(grid_vertices(shape.base_cells)).to(dense.device)
    num = vertices.shape[0]
    base[:num] = dense[:num]
    first, cells = shape.base_rows, shape.base_cells // 2
    for _ in range(grids - 1):
        base[:num] += interpolate_dense(dense[first : first + (cells + 1) ** 3], cells, vertices)
        first += dense_grid_rows(cells)
        cells //= 2
    return base


def base_from_above(arena: Arena, root_xyz: tuple[int, int, int], slot_above: int) -> Tensor:
    """Base grid of a new treelet: the field of the treelet above, at its finest level, at the base's vertices.

    Trilinear grids are nested (the base has half the cells of the node above per its edge), so the base reproduces the
    field above to float32 rounding, hash collisions included.

    Args:
        root_xyz: cell of the new treelet's root node at its level.
        slot_above: slot of that node's parent, in the treelet above.

    Returns:
        float32 [base_rows, F].
    """
    tree, level = int(arena.treelet[slot_above]), int(arena.level[slot_above]) + 1
    # positions in the cube of the treelet above: unit coordinates at the new root's level, then into its cube
    scale = 2.0 ** (int(arena.top_level[tree]) - level)
    corner = np.array(root_xyz, np.float64)
    cube = arena.top_xyz[tree].cpu().numpy()
    vertices = (corner + grid_vertices(arena.base_cells)) * scale - cube
    # a vertex on the far face of the node above belongs to its last cell, not to its neighbour's first: moved inside by
    # the smallest float32 step, 2^-24 of the cube
    far = (np.floor(corner / 2) * 2 + 2) * scale - cube
    inside = np.minimum(vertices.astype(np.float32), np.nextafter(far.astype(np.float32), np.float32(0.0)))
    base = torch.zeros((dense_grid_rows(arena.base_cells), arena.features), device=arena.device)
    for_device(arena.device).encode_into(
        torch.from_numpy(inside).to(arena.device),
        torch.full((len(inside),), slot_above, dtype=torch.int32, device=arena.device),
        torch.ones(len(inside), device=arena.device),
        arena,
        base[: len(inside)],
    )
    return base
