"""Occupancy of nodes: which cells a ray must sample. float EMA while training, bits everywhere else."""

import math

import numpy as np

from infnerf_tiles.arrays import Bool, Float64, Int32, Int64, UInt8
from infnerf_tiles.compiled import njit
from infnerf_tiles.geometry.node_id import decode_keys, encode_keys


def pack_cells(cells: Bool) -> UInt8:
    """Bits uint8 [n, O^3/8] of cells bool [n, O, O, O] indexed (z, y, x); least significant bit first."""
    flat = cells.reshape(cells.shape[0], math.prod(cells.shape[1:]))
    return np.packbits(flat, axis=1, bitorder="little")


def unpack_cells(bits: UInt8, occupancy_cells: int) -> Bool:
    """Cells bool [n, O, O, O] (z, y, x) of bits uint8 [n, O^3/8]."""
    o = occupancy_cells
    flat = np.unpackbits(bits, axis=1, bitorder="little", count=o**3)
    return flat.reshape(bits.shape[0], o, o, o).astype(np.bool_)


def dilate_cells(cells: Bool, neighbours: Int32 | None = None) -> Bool:
    """Cells [n, O, O, O] grown by one cell in all 26 directions, inside each node and into its neighbours.

    neighbours: int32 [n, 3, 2] from `neighbour_slots`; None keeps to each node.
    """
    out = cells.copy()
    for axis in range(3):
        before = out.copy()
        low, high = (_layer(axis, k) for k in (slice(None, -1), slice(1, None)))
        out[high] |= before[low]
        out[low] |= before[high]
        if neighbours is None:
            continue
        first, last = _layer(axis, slice(0, 1))[1:], _layer(axis, slice(-1, None))[1:]
        for side, mine, theirs in ((0, first, last), (1, last, first)):
            other = neighbours[:, axis, side]
            held = np.flatnonzero(other >= 0)
            out[(held, *mine)] |= before[(other[held], *theirs)]
    return out


def outer_cells(neighbours: Int32, occupancy_cells: int) -> Bool:
    """bool [n, O, O, O]: cells on faces behind which there is no node of the same level."""
    o = occupancy_cells
    out: Bool = np.zeros((neighbours.shape[0], o, o, o), np.bool_)
    for axis in range(3):
        for side, layer in enumerate((slice(0, 1), slice(-1, None))):
            out[(np.flatnonzero(neighbours[:, axis, side] < 0), *_layer(axis, layer)[1:])] = True
    return out


def neighbour_slots(keys: Int64) -> Int32:
    """int32 [n, 3, 2]: which of the nodes lies across each face of each (axis x, y, z; low, high side), or -1.

    keys: int64 [n], unique.
    """
    out = np.full((len(keys), 3, 2), -1, np.int32)
    order = np.argsort(keys)
    levels, xyz = decode_keys(keys)
    for axis in range(3):
        for side, step in enumerate((-1, 1)):
            moved = xyz.copy()
            moved[:, axis] += step
            inside = (moved[:, axis] >= 0) & (moved[:, axis] < np.int64(1) << levels.astype(np.int64))
            wanted = encode_keys(levels[inside], moved[inside])
            at = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)]
            out[inside, axis, side] = np.where(keys[at] == wanted, at, -1)
    return out


def _layer(axis: int, part: slice) -> tuple[slice, slice, slice, slice]:
    """Index of `part` along x, y or z (0, 1, 2) of cells [n, z, y, x]."""
    index = [slice(None)] * 4
    index[3 - axis] = part
    return (index[0], index[1], index[2], index[3])


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


def octant(child: int, occupancy_cells: int) -> tuple[slice, slice, slice]:
    """Where child 0..7 (dx + 2 dy + 4 dz) lies in its parent's cells indexed (z, y, x)."""
    half = occupancy_cells // 2
    return (
        slice((child >> 2) * half, (child >> 2) * half + half),
        slice(((child >> 1) & 1) * half, ((child >> 1) & 1) * half + half),
        slice((child & 1) * half, (child & 1) * half + half),
    )


def refined(cells: Bool) -> Bool:
    """Cells [n, O/2, O/2, O/2] of octants as cells [n, O, O, O] of the children there."""
    return cells.repeat(2, axis=1).repeat(2, axis=2).repeat(2, axis=3)


def cover_finer(cells: Bool, level: Int32, children: Int32) -> None:
    """Occupy, in place, every cell in which a resident child has an occupied one, from the finest level up.

    A node takes over from its children where the wanted level passes its own: what they show must not be missing then.

    Args:
        cells: bool [n, O, O, O] of slots 0 .. n-1. level: int32 [n]. children: int32 [n, 8], slots from n on left out.
    """
    n, o = cells.shape[0], cells.shape[1]
    half = o // 2
    for lev in range(int(level.max(initial=0)) - 1, -1, -1):
        slots = np.flatnonzero(level == lev)
        for c in range(8):
            below = children[slots, c]
            held = (below >= 0) & (below < n)
            finer = cells[below[held]].reshape(-1, half, 2, half, 2, half, 2).any(axis=(2, 4, 6))
            z, y, x = octant(c, o)
            cells[slots[held], z, y, x] |= finer


def any_occupied(bits: UInt8, level: Int32, children: Int32) -> UInt8:
    """uint8 [S]: whether a node or anything below it has a set bit; slots without a node (level < 0) give 0."""
    result: UInt8 = np.where(level >= 0, np.any(bits, axis=1), False).astype(np.uint8)
    for lev in range(int(level.max(initial=0)) - 1, -1, -1):
        slots = np.flatnonzero(level == lev)
        below = children[slots]
        has = np.where(below >= 0, result[np.maximum(below, 0)], 0).max(axis=1)
        result[slots] |= has.astype(np.uint8)
    return result
