"""Nested dense grids as one: coarse vertices are fine vertices, so corrections fold into the base exactly.

Folding before a step's encodes and spreading the gradient behind them is the same as encoding every grid, and saves
the traffic: samples meet in the few vertices of the coarse grids.
"""

from itertools import pairwise

import torch
from torch import Tensor

from infnerf_tiles.kernels.arena import VERTEX_BLOCK, Gradients, dense_grid_rows


def fold_dense(dense: Tensor, out: Tensor, *, base_cells: int, grids: int) -> None:
    """Write the sum of a treelet's nested dense grids, as one grid with `base_cells` cells, to `out`.

    Args:
        dense: float32 [dense_rows, F], grids with base_cells, base_cells / 2, ... cells one after another.
        out: float [rows >= dense_grid_rows(base_cells), F]; padding rows and those behind are left alone.
    """
    with torch.no_grad():
        total = None
        for n, first in reversed(_grids(base_cells, grids)):
            own = dense[first : first + (n + 1) ** 3].view(n + 1, n + 1, n + 1, -1)
            total = own if total is None else own + _finer(total)
        if total is not None:
            out[: (base_cells + 1) ** 3] = total.reshape(-1, out.shape[1]).to(out.dtype)


def spread_gradient(gradients: Gradients, *, base_cells: int, grids: int) -> None:
    """Give the corrections the gradient that encodes of a folded base left in its rows, and mark them.

    The corrections' rows are overwritten: encodes with `dense_grids` above 1 must not be mixed with this.
    """
    with torch.no_grad():
        places = _grids(base_cells, grids)
        for (fine, fine_first), (n, first) in pairwise(places):
            own = gradients.dense[fine_first : fine_first + (fine + 1) ** 3].view(fine + 1, fine + 1, fine + 1, -1)
            coarse = _coarser(own).reshape(-1, own.shape[3])
            gradients.dense[first : first + (n + 1) ** 3] = coarse
            rows = gradients.dense[first : first + dense_grid_rows(n)]
            marks = gradients.mark_dense[first // VERTEX_BLOCK : (first + dense_grid_rows(n)) // VERTEX_BLOCK]
            marks.copy_((rows.view(marks.shape[0], -1) != 0).any(dim=1))


def _grids(base_cells: int, grids: int) -> list[tuple[int, int]]:
    """(cells, first row) of nested grids, fine to coarse."""
    places, first, n = [], 0, base_cells
    for _ in range(grids):
        places.append((n, first))
        first, n = first + dense_grid_rows(n), n // 2
    return places


def _finer(grid: Tensor) -> Tensor:
    """Values [n+1, n+1, n+1, F] interpolated to [2n+1, 2n+1, 2n+1, F]."""
    for axis in range(3):
        grid = grid.transpose(0, axis)
        between = 0.5 * (grid[:-1] + grid[1:])
        finer = grid.new_empty((2 * grid.shape[0] - 1, *grid.shape[1:]))
        finer[0::2], finer[1::2] = grid, between
        grid = finer.transpose(0, axis)
    return grid


def _coarser(grid: Tensor) -> Tensor:
    """The transpose of `_finer`."""
    for axis in range(3):
        grid = grid.transpose(0, axis)
        coarser = grid[0::2].clone()
        coarser[:-1] += 0.5 * grid[1::2]
        coarser[1:] += 0.5 * grid[1::2]
        grid = coarser.transpose(0, axis)
    return grid
