"""Exact ray casting through the blocks of a city: a walk over a 2-D grid of cells, then box, roof and crown tests.

numba kernels only. A block that the walk meets before it was built is marked as wanted and the ray as incomplete: the
caller builds it and casts again, so that a city of any size costs only what is looked at.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import prange

from infnerf_tiles.arrays import Float32, Float64, Int32, Int64, UInt8
from infnerf_tiles.compiled import njit
from infnerf_tiles.synthetic import texture
from infnerf_tiles.synthetic.layout import (
    BLOCK_EDGE,
    BOX,
    ELLIPSOID,
    GABLE_X,
    MAX_HEIGHT,
    WALL,
)

CELLS_PER_EDGE = 8  # cells per block edge
CELL_EDGE = BLOCK_EDGE / CELLS_PER_EDGE
GROUND, SKY = -1, -2
_HUGE = 1e300
_LIFT = 1e-4  # shadow rays start this far off the surface, metres


class Tables(NamedTuple):
    """A city as the kernels see it.

    slot: int32 [nx, ny], row of a block in the tables below or -1 (not built yet); kind: uint8 [slots];
    cell_start: int64 [slots, CELLS_PER_EDGE^2 + 1] into items; cell_top: float64 [slots, CELLS_PER_EDGE^2] highest z;
    items: int32, solids per cell, highest first; boxes: float64 [n, 6]; shape, material: uint8 [n]; style: int64 [n];
    corner: float64 [2], the city's lowest x and y.
    """

    slot: Int32
    kind: UInt8
    cell_start: Int64
    cell_top: Float64
    items: Int32
    boxes: Float64
    shape: UInt8
    material: UInt8
    style: Int64
    corner: Float64


@njit
def _inverse(d: float) -> float:
    """1/d, with a huge number for 0 so that a ray inside a slab stays inside it (0 * inf would be NaN)."""
    if abs(d) < 1.0 / _HUGE:
        return _HUGE
    return 1.0 / d


@njit
def _enter(
    box: Float64, shape: int, ox: float, oy: float, oz: float, dx: float, dy: float, dz: float,
    ix: float, iy: float, iz: float, nearest: float,
) -> float:  # fmt: skip
    """Distance at which a ray enters a solid from outside, inf if it does not do so before `nearest`."""
    a, b = (box[0] - ox) * ix, (box[3] - ox) * ix
    near, far = min(a, b), max(a, b)
    a, b = (box[1] - oy) * iy, (box[4] - oy) * iy
    near, far = max(near, min(a, b)), min(far, max(a, b))
    a, b = (box[2] - oz) * iz, (box[5] - oz) * iz
    near, far = max(near, min(a, b)), min(far, max(a, b))
    if near > far or far < 0.0 or near >= nearest:
        return math.inf
    if shape == BOX:
        return near if near >= 0.0 else math.inf
    if shape == ELLIPSOID:
        rx, ry, rz = 2.0 / (box[3] - box[0]), 2.0 / (box[4] - box[1]), 2.0 / (box[5] - box[2])
        qx, qy, qz = (ox - box[0]) * rx - 1.0, (oy - box[1]) * ry - 1.0, (oz - box[2]) * rz - 1.0
        ex, ey, ez = dx * rx, dy * ry, dz * rz
        square = ex * ex + ey * ey + ez * ez
        half = qx * ex + qy * ey + qz * ez
        root = half * half - square * (qx * qx + qy * qy + qz * qz - 1.0)
        if root < 0.0:
            return math.inf
        t = (-half - math.sqrt(root)) / square
        return t if 0.0 <= t < nearest else math.inf
    # A gable is the box cut by two roof planes |across| / width + (z - z0) / rise <= 1.
    if shape == GABLE_X:
        scale = 2.0 / (box[4] - box[1])
        across, slope = (oy - box[1]) * scale - 1.0, dy * scale
    else:
        scale = 2.0 / (box[3] - box[0])
        across, slope = (ox - box[0]) * scale - 1.0, dx * scale
    rise = 1.0 / (box[5] - box[2])
    up, climb = (oz - box[2]) * rise, dz * rise
    for side in range(2):
        sign = 1.0 - 2.0 * side
        room = 1.0 - up - sign * across
        speed = climb + sign * slope
        if speed < 0.0:
            near = max(near, room / speed)
        elif speed > 0.0:
            far = min(far, room / speed)
        elif room < 0.0:
            return math.inf
    return near if near <= far and 0.0 <= near < nearest else math.inf


@njit
def trace(
    tables: Tables, ox: float, oy: float, oz: float, dx: float, dy: float, dz: float, any_hit: bool, wanted: UInt8
) -> tuple[float, int, bool]:
    """First surface along a ray: (t, solid or GROUND or SKY, complete).

    `any_hit`: return at the first solid found instead (shadows), and do not test the ground. Not complete: blocks are
    missing and marked in `wanted` uint8 [nx, ny]; the result is then meaningless.
    """
    best, found, complete = math.inf, SKY, True
    if dz < 0.0 and oz >= 0.0 and not any_hit:
        best, found = -oz / dz, GROUND
    ix, iy, iz = _inverse(dx), _inverse(dy), _inverse(dz)
    cells_x, cells_y = tables.slot.shape[0] * CELLS_PER_EDGE, tables.slot.shape[1] * CELLS_PER_EDGE
    # Clip to the slab of air in which things stand.
    lx, ly = tables.corner[0], tables.corner[1]
    a, b = (lx - ox) * ix, (lx + cells_x * CELL_EDGE - ox) * ix
    near, far = min(a, b), max(a, b)
    a, b = (ly - oy) * iy, (ly + cells_y * CELL_EDGE - oy) * iy
    near, far = max(near, min(a, b)), min(far, max(a, b))
    a, b = -oz * iz, (MAX_HEIGHT - oz) * iz
    near, far = max(max(near, min(a, b)), 0.0), min(min(far, max(a, b)), best)
    if near > far:
        return best, found, complete
    gx, gy = (ox + near * dx - lx) / CELL_EDGE, (oy + near * dy - ly) / CELL_EDGE
    cx, cy = min(max(int(gx), 0), cells_x - 1), min(max(int(gy), 0), cells_y - 1)
    step_x, step_y = (1 if dx >= 0.0 else -1), (1 if dy >= 0.0 else -1)
    next_x = (lx + (cx + (dx >= 0.0)) * CELL_EDGE - ox) * ix if dx != 0.0 else math.inf
    next_y = (ly + (cy + (dy >= 0.0)) * CELL_EDGE - oy) * iy if dy != 0.0 else math.inf
    delta_x, delta_y = CELL_EDGE * abs(ix), CELL_EDGE * abs(iy)
    enter = near
    while True:
        leave = min(min(next_x, next_y), far)
        block_x, block_y = cx // CELLS_PER_EDGE, cy // CELLS_PER_EDGE
        slot = tables.slot[block_x, block_y]
        if slot < 0:
            wanted[block_x, block_y] = 1
            complete = False
        else:
            cell = (cy - block_y * CELLS_PER_EDGE) * CELLS_PER_EDGE + cx - block_x * CELLS_PER_EDGE
            lowest = oz + (leave if dz < 0.0 else enter) * dz
            if lowest <= tables.cell_top[slot, cell]:
                for k in range(tables.cell_start[slot, cell], tables.cell_start[slot, cell + 1]):
                    item = tables.items[k]
                    if tables.boxes[item, 5] < lowest:
                        break  # they are sorted, highest first
                    t = _enter(tables.boxes[item], tables.shape[item], ox, oy, oz, dx, dy, dz, ix, iy, iz, best)
                    if t < best:
                        best, found = t, item
                        if any_hit:
                            return best, found, complete
        if best <= leave or leave >= far:
            return best, found, complete
        enter = leave
        if next_x < next_y:
            next_x += delta_x
            cx += step_x
            if cx < 0 or cx >= cells_x:
                return best, found, complete
        else:
            next_y += delta_y
            cy += step_y
            if cy < 0 or cy >= cells_y:
                return best, found, complete


@njit
def _normal(box: Float64, shape: int, x: float, y: float, z: float) -> tuple[float, float, float]:
    """Outward unit normal of the surface of a solid at a point on it."""
    if shape == ELLIPSOID:
        nx = (x - 0.5 * (box[0] + box[3])) / (box[3] - box[0]) ** 2
        ny = (y - 0.5 * (box[1] + box[4])) / (box[4] - box[1]) ** 2
        nz = (z - 0.5 * (box[2] + box[5])) / (box[5] - box[2]) ** 2
        length = math.sqrt(nx * nx + ny * ny + nz * nz)
        return nx / length, ny / length, nz / length
    # The face whose plane is nearest to the point.
    gap, nx, ny, nz = abs(x - box[0]), -1.0, 0.0, 0.0
    if abs(x - box[3]) < gap:
        gap, nx = abs(x - box[3]), 1.0
    if abs(y - box[1]) < gap:
        gap, nx, ny = abs(y - box[1]), 0.0, -1.0
    if abs(y - box[4]) < gap:
        gap, nx, ny = abs(y - box[4]), 0.0, 1.0
    if abs(z - box[2]) < gap:
        gap, nx, ny, nz = abs(z - box[2]), 0.0, 0.0, -1.0
    if shape == BOX:
        if abs(z - box[5]) < gap:
            return 0.0, 0.0, 1.0
        return nx, ny, nz
    if shape == GABLE_X:
        half, side = 0.5 * (box[4] - box[1]), y - 0.5 * (box[1] + box[4])
    else:
        half, side = 0.5 * (box[3] - box[0]), x - 0.5 * (box[0] + box[3])
    rise = box[5] - box[2]
    slant = math.hypot(half, rise)
    if abs(half * rise - abs(side) * rise - (z - box[2]) * half) / slant <= gap:
        tilt = math.copysign(rise / slant, side)
        return (0.0, tilt, half / slant) if shape == GABLE_X else (tilt, 0.0, half / slant)
    return nx, ny, nz


@njit
def _shadow(
    tables: Tables, x: float, y: float, z: float, nx: float, ny: float, nz: float, blocker: int, wanted: UInt8
) -> tuple[int, bool]:
    """The solid between a surface point and the sun (SKY: none, the point is lit) and whether no block was missing.

    `blocker`: the solid that shaded the point before, or SKY; neighbours are mostly in the same shadow, so it is
    tried first.
    """
    sx, sy, sz = texture.SUN_X, texture.SUN_Y, texture.SUN_Z
    if nx * sx + ny * sy + nz * sz <= 0.0:
        return GROUND, True
    ox, oy, oz = x + _LIFT * nx, y + _LIFT * ny, z + _LIFT * nz
    if blocker >= 0:
        box, shape = tables.boxes[blocker], tables.shape[blocker]
        if _enter(box, shape, ox, oy, oz, sx, sy, sz, 1.0 / sx, 1.0 / sy, 1.0 / sz, math.inf) < math.inf:
            return blocker, True
    _, blocker, complete = trace(tables, ox, oy, oz, sx, sy, sz, True, wanted)
    return blocker, complete


@njit
def _albedo(
    tables: Tables, x: float, y: float, z: float, nx: float, nz: float, item: int
) -> tuple[float, float, float]:
    """Linear albedo of a surface point of a solid or the ground."""
    if item == GROUND:
        block_x = math.floor((x - tables.corner[0]) / BLOCK_EDGE)
        block_y = math.floor((y - tables.corner[1]) / BLOCK_EDGE)
        kind = texture.COUNTRYSIDE
        if 0 <= block_x < tables.slot.shape[0] and 0 <= block_y < tables.slot.shape[1]:
            # The ray that came here went through this block, so it exists (clipped for a hit on the very border).
            kind = int(tables.kind[max(tables.slot[int(block_x), int(block_y)], 0)])
        return texture.ground(x, y, kind)
    box, style, material = tables.boxes[item], tables.style[item], tables.material[item]
    if material != WALL:
        return texture.solid(x, y, z, nx, nz, box, material, style)
    if nz > 0.5:
        return texture.flat_roof(x, y, box, style)
    return texture.wall(x, y, z, nx, box, style)


@njit
def _cast_group(
    tables: Tables, origin: Float64, rotation: Float64, directions: Float64, start: int, stop: int, shaded: bool,
    wanted: UInt8,
) -> tuple[float, float, float, float, bool]:  # fmt: skip
    """Distance along the first and mean colour of the rays start ... stop, and whether no block was missing."""
    ox, oy, oz = origin[0], origin[1], origin[2]
    red, green, blue = 0.0, 0.0, 0.0
    first = math.inf
    complete = True
    blocker = SKY
    nx, ny, nz = 0.0, 0.0, 1.0
    for k in range(start, stop):
        ux, uy, uz = directions[k, 0], directions[k, 1], directions[k, 2]
        dx = rotation[0, 0] * ux + rotation[0, 1] * uy + rotation[0, 2] * uz
        dy = rotation[1, 0] * ux + rotation[1, 1] * uy + rotation[1, 2] * uz
        dz = rotation[2, 0] * ux + rotation[2, 1] * uy + rotation[2, 2] * uz
        distance, item, whole = trace(tables, ox, oy, oz, dx, dy, dz, False, wanted)
        if k == start:
            first = distance
        if whole and shaded:
            if item == SKY:
                r, g, b = texture.sky(dx, dy, dz)
            else:
                x, y, z = ox + distance * dx, oy + distance * dy, oz + distance * dz
                nx, ny, nz = 0.0, 0.0, 1.0
                if item != GROUND:
                    nx, ny, nz = _normal(tables.boxes[item], tables.shape[item], x, y, z)
                blocker, whole = _shadow(tables, x, y, z, nx, ny, nz, blocker, wanted)
                albedo = _albedo(tables, x, y, z, nx, nz, item)
                r, g, b = texture.display(albedo, nx, ny, nz, z, 1.0 if blocker == SKY else 0.0)
            red, green, blue = red + r, green + g, blue + b
        complete = complete and whole
    scale = 1.0 / (stop - start)
    return first, red * scale, green * scale, blue * scale, complete


@njit(cache=True, parallel=True)
def cast_groups(
    tables: Tables, origins: Float64, rotation: Float64, directions: Float64, group: int,
    shaded: bool, t: Float64, rgb: Float32, wanted: UInt8,
) -> int:  # fmt: skip
    """Casts `group` consecutive rays for every output and stores their mean colour and the first one's distance.

    origins: float64 [n, 3], or [1, 3] for all; rotation: float64 [3, 3], applied to directions float64
    [n * group, 3]. t: float64 [n]; rgb: float32 [n, 3], left alone unless `shaded`; outputs whose t is not NaN on
    entry are skipped, those that need a missing block stay NaN. Returns how many those are.
    """
    incomplete = 0
    shared = origins.shape[0] == 1
    for index in prange(t.shape[0]):
        i = int(np.int64(index))  # prange counts in uint64, which would turn sums with int64 into floats
        if t[i] == t[i]:
            continue
        distance, r, g, b, complete = _cast_group(
            tables, origins[0 if shared else i], rotation, directions, i * group, (i + 1) * group, shaded, wanted
        )
        if complete:
            t[i] = distance
            if shaded:
                rgb[i, 0], rgb[i, 1], rgb[i, 2] = r, g, b
        else:
            incomplete += 1
    return incomplete
