"""Occupancy of nodes: which cells a ray must sample. float EMA while training, bits everywhere else."""

import math

import numpy as np
from numba import njit

from infnerf_tiles.arrays import Bool, Float64, Int32, UInt8


def pack_cells(cells: Bool) -> UInt8:
    """Bits uint8 [n, O^3/8] of cells bool [n, O, O, O] indexed (z, y, x); least significant bit first."""
    flat = cells.reshape(cells.shape[0], math.prod(cells.shape[1:]))
    return np.packbits(flat, axis=1, bitorder="little")


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
def _node_at(nx: int, ny: int, nz: int, level: int, children: Int32, root: int) -> int:
    """Slot of the node with cell (nx, ny, nz) of its level, or -1."""
    slot = root
    for shift in range(level - 1, -1, -1):
        slot = children[slot, ((nx >> shift) & 1) + 2 * ((ny >> shift) & 1) + 4 * ((nz >> shift) & 1)]
        if slot < 0:
            break
    return slot


@njit(cache=True)
def _mark_points(unit: Float64, children: Int32, root: int, cells: int, reach: int, out: Bool) -> None:
    for m in range(unit.shape[0]):
        x, y, z = unit[m, 0], unit[m, 1], unit[m, 2]
        # written so that NaN is left out too
        if not (x >= 0.0 and y >= 0.0 and z >= 0.0 and x < 1.0 and y < 1.0 and z < 1.0):
            continue
        level = 0
        slot = root
        while slot >= 0:
            edge = cells << level
            gx, gy, gz = int(x * edge), int(y * edge), int(z * edge)
            nx, ny, nz = gx // cells, gy // cells, gz // cells
            for hz in range(max(gz - reach, 0), min(gz + reach + 1, edge)):
                for hy in range(max(gy - reach, 0), min(gy + reach + 1, edge)):
                    for hx in range(max(gx - reach, 0), min(gx + reach + 1, edge)):
                        mx, my, mz = hx // cells, hy // cells, hz // cells
                        node = slot
                        if mx != nx or my != ny or mz != nz:
                            node = _node_at(mx, my, mz, level, children, root)
                        if node >= 0:
                            out[node, hz % cells, hy % cells, hx % cells] = True
            level += 1
            cx, cy, cz = int(x * 2.0**level) & 1, int(y * 2.0**level) & 1, int(z * 2.0**level) & 1
            slot = children[slot, cx + 2 * cy + 4 * cz]


def cells_of_points(
    unit: Float64, level: Int32, children: Int32, *, root: int, occupancy_cells: int, reach: int = 1
) -> Bool:
    """Cells bool [S, O, O, O] within `reach` cells of a point's, at every level of the point's path.

    Args:
        unit: float64 [m, 3] points; those outside the unit cube are left out. level, children: as in `Arena`.
        root: slot of the octree's root.
        reach: 0 for the points' own cells, 1 for the 26 around them too, whichever nodes of the level they are in.
    """
    o = occupancy_cells
    out = np.zeros((level.shape[0], o, o, o), np.bool_)
    _mark_points(unit, children, root, o, reach, out)
    return out


def any_occupied(bits: UInt8, level: Int32, children: Int32) -> UInt8:
    """uint8 [S]: whether a node or anything below it has a set bit; slots without a node (level < 0) give 0."""
    result: UInt8 = np.where(level >= 0, np.any(bits, axis=1), False).astype(np.uint8)
    for lev in range(int(level.max(initial=0)) - 1, -1, -1):
        slots = np.flatnonzero(level == lev)
        below = children[slots]
        has = np.where(below >= 0, result[np.maximum(below, 0)], 0).max(axis=1)
        result[slots] |= has.astype(np.uint8)
    return result
