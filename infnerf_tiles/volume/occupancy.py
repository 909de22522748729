"""Occupancy of nodes: which cells a ray must sample. float EMA while training, bits everywhere else."""

import numpy as np
from numba import njit, prange

from infnerf_tiles.arrays import Bool, Float32, Float64, Int32, UInt8


def pack_cells(cells: Bool) -> UInt8:
    """Bits uint8 [n, O^3/8] of cells bool [n, O, O, O] indexed (z, y, x); least significant bit first."""
    return np.packbits(cells.reshape(cells.shape[0], -1), axis=1, bitorder="little")


def unpack_cells(bits: UInt8, occupancy_cells: int) -> Bool:
    """Cells bool [n, O, O, O] (z, y, x) of bits uint8 [n, O^3/8]."""
    o = occupancy_cells
    flat = np.unpackbits(bits, axis=1, bitorder="little", count=o**3)
    return flat.reshape(bits.shape[0], o, o, o).astype(np.bool_)


def dilate_cells(cells: Bool) -> Bool:
    """Cells [n, O, O, O] grown by one cell in all 26 directions, inside each node."""
    out = cells.copy()
    for axis in (1, 2, 3):
        grown = out.copy()
        ahead = [slice(None)] * 4
        behind = [slice(None)] * 4
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        grown[tuple(ahead)] |= out[tuple(behind)]
        grown[tuple(behind)] |= out[tuple(ahead)]
        out = grown
    return out


@njit(cache=True)
def _mark_points(
    unit: Float64, level: Int32, children: Int32, root: int, cells: int, reach: int, out: Bool
) -> None:
    for m in range(unit.shape[0]):
        # every node on the point's path, and the neighbours that the reach touches: 27 walks of shifted points
        for shift in range(27):
            sx, sy, sz = shift % 3 - 1, (shift // 3) % 3 - 1, shift // 9 - 1
            slot = root
            scale = 1.0
            while slot >= 0:
                step = reach / (scale * cells)
                x, y, z = unit[m, 0] + sx * step, unit[m, 1] + sy * step, unit[m, 2] + sz * step
                if min(x, min(y, z)) < 0.0 or max(x, max(y, z)) >= 1.0:
                    break
                grid = scale * cells
                # the shifted point may lie in another node of this level: walk down to it
                node = root
                s = 1.0
                while node >= 0 and s < scale:
                    s *= 2.0
                    child = (int(x * s) & 1) + 2 * (int(y * s) & 1) + 4 * (int(z * s) & 1)
                    node = children[node, child]
                if node >= 0:
                    cx, cy, cz = int(x * grid) % cells, int(y * grid) % cells, int(z * grid) % cells
                    out[node, cz, cy, cx] = True
                # one level down the unshifted path
                s = scale * 2.0
                child = (
                    (int(unit[m, 0] * s) & 1) + 2 * (int(unit[m, 1] * s) & 1) + 4 * (int(unit[m, 2] * s) & 1)
                )
                slot = children[slot, child]
                scale = s


def cells_of_points(
    unit: Float64, level: Int32, children: Int32, *, root: int, occupancy_cells: int, reach: int = 1
) -> Bool:
    """Cells bool [S, O, O, O] within `reach` cells of a point, at every level of the point's path.

    Args:
        unit: float64 [m, 3] points in the unit cube. level, children: as in `Arena`. root: slot of the octree's root.
    """
    o = occupancy_cells
    out = np.zeros((level.shape[0], o, o, o), np.bool_)
    _mark_points(unit, level, children, root, o, reach, out)
    return out


def any_occupied(bits: UInt8, level: Int32, children: Int32) -> UInt8:
    """uint8 [S]: whether a node or anything below it has a set bit; slots without a node (level < 0) give 0."""
    result: UInt8 = bits.any(axis=1).astype(np.uint8)
    for lev in range(int(level.max(initial=0)) - 1, -1, -1):
        slots = np.flatnonzero(level == lev)
        below = children[slots]
        has = np.where(below >= 0, result[np.maximum(below, 0)], 0).max(axis=1)
        result[slots] |= has.astype(np.uint8)
    return result


@njit(cache=True, parallel=True)
def decayed_maximum(ema: Float32, cell: Int32, density: Float32, decay: float) -> None:
    """ema[cell] = max(decay * ema[cell], density), in place, for distinct flat cell numbers."""
    for k in prange(cell.shape[0]):
        c = cell[k]
        ema[c] = max(np.float32(decay) * ema[c], density[k])
