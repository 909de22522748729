"""Nested dense grids as one, in Triton: folded fine-ward before a step's encodes, their gradient spread coarse-ward."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from infnerf_tiles.kernels.arena import Gradients, dense_grid_rows
from infnerf_tiles.kernels.cuda.launch import launch, programs_for

_BLOCK = 128


@triton.jit
def _fold_kernel(grid, coarse, out, n, COARSE: tl.constexpr, F: tl.constexpr, BLOCK: tl.constexpr):
    """out = grid + coarse interpolated, at the (n+1)^3 vertices of a grid; `coarse` has n/2 cells."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = row < (n + 1) * (n + 1) * (n + 1)
    f = tl.arange(0, F)
    place = (row * F)[:, None] + f[None, :]
    total = tl.load(grid + place, mask=live[:, None], other=0.0)
    if COARSE:
        x = row % (n + 1)
        y = row // (n + 1) % (n + 1)
        z = row // (n + 1) // (n + 1)
        half = n // 2 + 1
        for c in tl.static_range(8):
            # an even vertex is a coarse one; an odd one lies between two
            vx = (x + (c & 1)) // 2
            vy = (y + ((c >> 1) & 1)) // 2
            vz = (z + (c >> 2)) // 2
            w = tl.full([BLOCK], 1.0, dtype=tl.float32)
            w = tl.where((x & 1) == 1, 0.5 * w, 0.0 if c & 1 else w)
            w = tl.where((y & 1) == 1, 0.5 * w, 0.0 if (c >> 1) & 1 else w)
            w = tl.where((z & 1) == 1, 0.5 * w, 0.0 if c >> 2 else w)
            part = tl.load(
                coarse + (((vz * half + vy) * half + vx) * F)[:, None] + f[None, :],
                mask=(live & (w > 0.0))[:, None], other=0.0,
            )  # fmt: skip
            total += w[:, None] * part
    tl.store(out + place, total.to(out.dtype.element_ty), mask=live[:, None])


@triton.jit
def _spread_kernel(fine, coarse, marks, n, F: tl.constexpr, BLOCK: tl.constexpr):
    """coarse = what its vertices, (n+1)^3 of them, have in the gradient of the grid with 2n cells."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = row < (n + 1) * (n + 1) * (n + 1)
    f = tl.arange(0, F)
    x = row % (n + 1) * 2
    y = row // (n + 1) % (n + 1) * 2
    z = row // (n + 1) // (n + 1) * 2
    edge = 2 * n + 1
    total = tl.zeros([BLOCK, F], dtype=tl.float32)
    for c in tl.static_range(27):
        vx, vy, vz = x + (c % 3 - 1), y + (c // 3 % 3 - 1), z + (c // 9 - 1)
        inside = live & (vx >= 0) & (vx < edge) & (vy >= 0) & (vy < edge) & (vz >= 0) & (vz < edge)
        w = (1.0 if c % 3 == 1 else 0.5) * (1.0 if c // 3 % 3 == 1 else 0.5) * (1.0 if c // 9 == 1 else 0.5)
        place = (((vz * edge + vy) * edge + vx) * F)[:, None] + f[None, :]
        total += w * tl.load(fine + place, mask=inside[:, None], other=0.0)
    tl.store(coarse + (row * F)[:, None] + f[None, :], total, mask=live[:, None])
    some = live & (tl.max((total != 0.0).to(tl.int32), 1) > 0)
    # marks are never cleared here: that is the optimiser's
    tl.store(marks + row // 8, 1, mask=some)


def fold_dense(dense: Tensor, out: Tensor, *, base_cells: int, grids: int) -> None:
    """Write the sum of a treelet's nested dense grids, as one grid with `base_cells` cells, to `out`.

    Args:
        dense: float32 [dense_rows, F], grids with base_cells, base_cells / 2, ... cells one after another.
        out: float [rows >= dense_grid_rows(base_cells), F]; padding rows and those behind are left alone.
    """
    features = dense.shape[1]
    firsts = [sum(dense_grid_rows(base_cells >> h) for h in range(g)) for g in range(grids)]
    total = dense
    for g in reversed(range(grids)):
        n = base_cells >> g
        rows = (n + 1) ** 3
        into = out if g == 0 else torch.empty((rows, features), device=dense.device)
        launch(
            _fold_kernel, programs_for(rows, _BLOCK), dense[firsts[g] :], total, into, n,
            COARSE=g < grids - 1, F=features, BLOCK=_BLOCK,
        )  # fmt: skip
        total = into


def spread_gradient(gradients: Gradients, *, base_cells: int, grids: int) -> None:
    """Give the corrections the gradient that encodes of a folded base left in its rows, and mark them.

    The corrections' rows are overwritten: encodes with `dense_grids` above 1 must not be mixed with this.
    """
    first = 0
    for g in range(1, grids):
        below = first + dense_grid_rows(base_cells >> (g - 1))
        n = base_cells >> g
        launch(
            _spread_kernel, programs_for((n + 1) ** 3, _BLOCK), gradients.dense[first:], gradients.dense[below:],
            gradients.mark_dense[below // 8 :], n, F=gradients.dense.shape[1], BLOCK=_BLOCK,
        )  # fmt: skip
        first = below
