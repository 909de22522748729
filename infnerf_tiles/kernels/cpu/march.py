"""March rays through the octree and emit packed samples (cone marching, DESIGN: step lattice t_i = near (1+c)^i).

Step positions follow from the integer i and the ray alone. Skipping empty cells and nodes only leaves out steps; it
never moves one, so a ray cut into pieces gives the same samples as in one go.
"""

import math

import numpy as np
import torch
from numba import njit, prange

from infnerf_tiles.arrays import Float32, Float64, Int32, Int64, UInt8
from infnerf_tiles.kernels.arena import Arena, MarchSettings, Rays, Samples
from infnerf_tiles.kernels.cpu.threads import parallel_region

_KNOWN = 128
"""Samples of a ray whose steps are kept from counting to filling, so that empty space is crossed once."""


@njit(cache=True, inline="always")
def _exit_distance(o: float, d: float, cell: float, size: float) -> float:
    """Distance at which a ray leaves the slab [cell, cell+1) * size along one axis."""
    if d > 0.0:
        return ((cell + 1.0) * size - o) / d
    if d < 0.0:
        return (cell * size - o) / d
    return math.inf


@njit(cache=True, inline="always")
def _block_size(i: int, wanted: float, level: int, log2_q: float) -> int:
    """Steps in the block of step i, drawn at `level` below `wanted`; as wanted at the block's first step."""
    most = int(math.log2(max(1.0, 0.5 / log2_q)))
    k = min(math.ceil(wanted) - level, most)
    # within half an octave the wanted level passes one integer at most
    if k < most and math.ceil(wanted + (i % (2 << k)) * log2_q) - level > k:
        k += 1
    return 1 << k


@njit(cache=True, inline="always")
def _block_length(t: float, c: float, log_q: float, size: int) -> float:
    """Length of the block whose middle step has its own middle at t."""
    if size == 1:
        return t * c / (1.0 + 0.5 * c)
    half = size >> 1
    return t / (1.0 + 0.5 * c) * (math.exp((size - half) * log_q) - math.exp(-half * log_q))


@njit(cache=True)
def _next_sample(
    i: int,
    i_end: int,
    ox: float,
    oy: float,
    oz: float,
    dx: float,
    dy: float,
    dz: float,
    mid_near: float,
    offset: float,
    log_q: float,
    lambda_near: float,
    root: int,
    children: Int32,
    occupancy: UInt8,
    any_occupied: UInt8,
    cells: int,
    adapt: bool,
) -> tuple[int, int, float, float, float, float, float, int]:
    """First step >= i in an occupied cell as (step, slot, wanted level, t, x, y, z, stride); slot -1: there is none."""
    log2_q = log_q * 1.4426950408889634
    below_one = 1.0 - 1e-12
    while i < i_end:
        s = i + offset
        t = mid_near * math.exp(s * log_q)
        x = min(max(ox + t * dx, 0.0), below_one)
        y = min(max(oy + t * dy, 0.0), below_one)
        z = min(max(oz + t * dz, 0.0), below_one)
        wanted = lambda_near - s * log2_q
        slot = root
        lev = 0
        scale = 1.0
        empty = False
        stride = 1
        while True:
            if any_occupied[slot] == 0:
                empty = True
                break
            if lev >= wanted:
                break
            half = scale * 2.0
            child = (int(x * half) & 1) + 2 * (int(y * half) & 1) + 4 * (int(z * half) & 1)
            below = children[slot, child]
            if below < 0:
                break
            slot = below
            lev += 1
            scale = half
        grid = scale if empty else scale * cells
        cx = math.floor(x * grid)
        cy = math.floor(y * grid)
        cz = math.floor(z * grid)
        if not empty:
            node_cells = np.int64(cells)
            bx = np.int64(cx) & (node_cells - 1)
            by = np.int64(cy) & (node_cells - 1)
            bz = np.int64(cz) & (node_cells - 1)
            bit = (bz * node_cells + by) * node_cells + bx
            if (occupancy[slot, bit >> 3] >> (bit & 7)) & 1:
                if adapt and wanted > lev:
                    stride = _block_size(i, wanted, lev, log2_q)
                if i % stride == stride >> 1:
                    return i, slot, wanted, t, x, y, z, stride
        size = 1.0 / grid
        leave = min(
            _exit_distance(ox, dx, cx, size),
            min(_exit_distance(oy, dy, cy, size), _exit_distance(oz, dz, cz, size)),
        )
        jump = i + 1
        if leave > t:
            # rounded down, so that no step outside this cell is ever left out
            jump = max(jump, int(min(math.log(leave / mid_near) / log_q - offset, float(i_end))))
        if lev > 0:
            # behind this step coarser nodes draw, whose cells are others
            jump = min(jump, max(i + 1, i + int((wanted - (lev - 1)) / log2_q)))
        if stride > 1:
            # to the block's middle, or to the next block, which may be shorter
            place, half = i % stride, stride >> 1
            jump = min(jump, i - place + (half if place < half else stride))
        i = jump
    return i_end, -1, 0.0, 0.0, 0.0, 0.0, 0.0, 1


@njit(cache=True)
def _step_range(
    ox: float, oy: float, oz: float, dx: float, dy: float, dz: float, mid_near: float, offset: float, log_q: float
) -> tuple[int, int]:
    """First and one-past-last step whose middle lies in the unit cube."""
    t0 = 0.0
    t1 = math.inf
    for axis in range(3):
        o = ox if axis == 0 else (oy if axis == 1 else oz)
        d = dx if axis == 0 else (dy if axis == 1 else dz)
        if d != 0.0:
            a = (0.0 - o) / d
            b = (1.0 - o) / d
            t0 = max(t0, min(a, b))
            t1 = min(t1, max(a, b))
        elif o < 0.0 or o >= 1.0:
            return 0, 0
    if t1 <= t0 or t1 <= mid_near:
        return 0, 0
    first = 0
    if t0 > mid_near:
        first = max(0, math.ceil(math.log(t0 / mid_near) / log_q - offset))
    last = math.ceil(math.log(t1 / mid_near) / log_q - offset)
    return first, max(first, last)


@njit(cache=True, parallel=True)
def _count(
    origins: Float64,
    directions: Float64,
    footprint: Float64,
    offset: Float64,
    start: Int64,
    near: float,
    step: float,
    gsd_root: float,
    lod_bias: float,
    limit: int,
    root: int,
    children: Int32,
    occupancy: UInt8,
    any_occupied: UInt8,
    cells: int,
    adapt: bool,
    counts: Int64,
    ends: Int64,
    known: Int32,
) -> None:
    for q in prange(origins.shape[0]):
        c = step * footprint[q]
        log_q = math.log1p(c)
        mid_near = near * (1.0 + 0.5 * c)
        lambda_near = math.log2(gsd_root / (mid_near * footprint[q])) + lod_bias
        ox, oy, oz = origins[q, 0], origins[q, 1], origins[q, 2]
        dx, dy, dz = directions[q, 0], directions[q, 1], directions[q, 2]
        counts[q] = 0
        ends[q] = -1
        if start[q] < 0:
            continue
        first, last = _step_range(ox, oy, oz, dx, dy, dz, mid_near, offset[q], log_q)
        i = max(first, start[q])
        n = 0
        while n < limit:
            found = _next_sample(
                i, last, ox, oy, oz, dx, dy, dz, mid_near, offset[q], log_q, lambda_near,
                root, children, occupancy, any_occupied, cells, adapt,
            )  # fmt: skip
            if found[1] < 0:
                i = -1
                break
            if n < known.shape[1]:
                known[q, n] = found[0] - max(first, start[q])
            n += 1
            i = found[0] + 1
        counts[q] = n
        ends[q] = i


@njit(cache=True, inline="always")
def _round_inside(u: float, nodes: float) -> np.float32:
    """Coordinate u as float32, inside the same of `nodes` equal parts of [0, 1) as u is."""
    rounded = np.float32(u)
    # a part's faces are float32 numbers, so rounding can only reach the upper one, where the next part begins
    upper = np.float32((math.floor(u * nodes) + 1.0) / nodes)
    return np.nextafter(upper, np.float32(0.0)) if rounded >= upper else rounded


@njit(cache=True, inline="always")
def _occupied(place: tuple[float, float, float], slot: int, level: int, occupancy: UInt8, cells: int) -> bool:
    """Whether the cell of node `slot` at a place in the unit cube is occupied."""
    grid = 2.0**level * cells
    bx, by, bz = np.int64(place[0] * grid), np.int64(place[1] * grid), np.int64(place[2] * grid)
    bit = ((bz & (cells - 1)) * cells + (by & (cells - 1))) * cells + (bx & (cells - 1))
    return bool((occupancy[slot, bit >> 3] >> (bit & 7)) & 1)


@njit(cache=True, parallel=True)
def _fill(
    origins: Float64,
    directions: Float64,
    footprint: Float64,
    offset: Float64,
    start: Int64,
    near: float,
    step: float,
    gsd_root: float,
    lod_bias: float,
    root: int,
    children: Int32,
    occupancy: UInt8,
    any_occupied: UInt8,
    cells: int,
    adapt: bool,
    level: Int32,
    treelet: Int32,
    lambda_max: Float32,
    top_level: Int32,
    top_xyz: Int64,
    above: Int32,
    counts: Int64,
    known: Int32,
    ray_start: Int64,
    out_ray: Int32,
    out_t: Float32,
    out_dt: Float32,
    out_wanted: Float32,
    out_slot: Int32,
    out_beta: Float32,
    out_position: Float32,
    out_blend: Float32,
    out_slot_above: Int32,
    out_position_above: Float32,
) -> None:
    for q in prange(origins.shape[0]):
        kept = ray_start[q + 1] - ray_start[q]
        if kept == 0:
            continue
        c = step * footprint[q]
        log_q = math.log1p(c)
        mid_near = near * (1.0 + 0.5 * c)
        lambda_near = math.log2(gsd_root / (mid_near * footprint[q])) + lod_bias
        ox, oy, oz = origins[q, 0], origins[q, 1], origins[q, 2]
        dx, dy, dz = directions[q, 0], directions[q, 1], directions[q, 2]
        first, last = _step_range(ox, oy, oz, dx, dy, dz, mid_near, offset[q], log_q)
        i = max(first, start[q])
        # thinning: run j of neighbouring samples, [j counts / kept, (j + 1) counts / kept), keeps its middle one
        j = 0
        middle, end = (counts[q] // kept - 1) // 2, counts[q] // kept
        length = 0.0
        for n in range(counts[q]):
            if n < known.shape[1]:
                i = max(first, start[q]) + known[q, n]
            found = _next_sample(
                i, last, ox, oy, oz, dx, dy, dz, mid_near, offset[q], log_q, lambda_near,
                root, children, occupancy, any_occupied, cells, adapt,
            )  # fmt: skip
            i = found[0] + 1
            m = ray_start[q] + j
            slot, wanted, t = found[1], found[2], found[3]
            place = (found[4], found[5], found[6])
            length += _block_length(t, c, log_q, found[7])
            if n == middle:
                lev = level[slot]
                beta = 1.0
                if lev > 0:
                    beta = min(max(min(wanted, lambda_max[slot]) - (lev - 1), 0.0), 1.0)
                tree = treelet[slot]
                top = top_level[tree]
                blend = 1.0
                other = -1
                if lev == top and beta < 1.0 and above[tree] >= 0:
                    blend = beta
                    beta = 1.0
                    other = above[tree]
                    # where the treelet above draws nothing, its field is unknown rather than empty
                    if not _occupied(place, other, level[other], occupancy, cells):
                        other = -1
                out_ray[m] = q
                out_t[m] = t
                out_wanted[m] = wanted
                out_slot[m] = slot
                out_beta[m] = beta
                out_blend[m] = blend
                out_slot_above[m] = other
                scale = 2.0**top
                for a in range(3):
                    out_position[m, a] = _round_inside(place[a] * scale - top_xyz[tree, a], 2.0 ** (lev - top))
                if other >= 0:
                    tree = treelet[other]
                    top = top_level[tree]
                    scale = 2.0**top
                    nodes = 2.0 ** (level[other] - top)
                    for a in range(3):
                        out_position_above[m, a] = _round_inside(place[a] * scale - top_xyz[tree, a], nodes)
                else:
                    for a in range(3):
                        out_position_above[m, a] = 0.0
            if n == end - 1:
                out_dt[m] = length
                length = 0.0
                j += 1
                begin, end = end, (j + 1) * counts[q] // kept
                middle = (begin + end - 1) // 2


def march(
    rays: Rays,
    arena: Arena,
    settings: MarchSettings,
    *,
    start: torch.Tensor | None = None,
    limit: int | None = None,
    keep: int | None = None,
    adapt: bool = False,
) -> Samples:
    """Emit the samples of each ray that lie in occupied cells, front to back.

    Args:
        rays: the packet, Q rays.
        arena: resident nodes.
        settings: lattice and level-of-detail constants.
        start: int64 [Q], lattice step to start from (what `next_step` returned); -1 leaves the ray out. None: all
            start at their first.
        limit: stop each ray after that many samples (to go on later from `next_step`). None goes to the end.
        keep: thin a ray evenly to at most that many samples (training): of each run of neighbours the middle one stays
            and takes the summed length of all. None keeps all.
        adapt: where the drawn node is k levels coarser than wanted, because nothing finer exists there, steps come in
            aligned blocks of 2^k (of half an octave of distance at most); a block's middle step stands for all of it.
            For training: most of the air over a scene is drawn by coarse nodes.
    """
    num = rays.origins.shape[0]
    packet = (rays.origins, rays.directions, rays.footprint, rays.offset)
    o, d, footprint, offset = (np.ascontiguousarray(x.numpy()) for x in packet)
    begin = np.zeros(num, np.int64) if start is None else np.ascontiguousarray(start.numpy())
    counts = np.zeros(num, np.int64)
    ends = np.empty(num, np.int64)
    known = np.empty((num, _KNOWN), np.int32)
    children, occupancy, any_occupied = arena.children.numpy(), arena.occupancy.numpy(), arena.any_occupied.numpy()
    near, step, gsd_root, lod_bias = settings.near, settings.step, settings.gsd_root, settings.lod_bias
    most = np.iinfo(np.int64).max if limit is None else limit
    with parallel_region():
        _count(
            o, d, footprint, offset, begin, near, step, gsd_root, lod_bias, most,
            arena.root, children, occupancy, any_occupied, arena.occupancy_cells, adapt, counts, ends, known,
        )  # fmt: skip
        ray_start = np.zeros(num + 1, np.int64)
        np.cumsum(counts if keep is None else np.minimum(counts, keep), out=ray_start[1:])
        m = int(ray_start[-1])
        ray, slot, slot_above = (np.empty(m, np.int32) for _ in range(3))
        t, dt, wanted, beta, blend = (np.empty(m, np.float32) for _ in range(5))
        position, position_above = np.empty((m, 3), np.float32), np.empty((m, 3), np.float32)
        _fill(
            o, d, footprint, offset, begin, near, step, gsd_root, lod_bias,
            arena.root, children, occupancy, any_occupied, arena.occupancy_cells, adapt, arena.level.numpy(),
            arena.treelet.numpy(), arena.lambda_max.numpy(), arena.top_level.numpy(), arena.top_xyz.numpy(),
            arena.above.numpy(), counts, known, ray_start,
            ray, t, dt, wanted, slot, beta, position, blend, slot_above, position_above,
        )  # fmt: skip
    new = torch.from_numpy
    return Samples(
        ray_start=new(ray_start), ray=new(ray), t=new(t), dt=new(dt), wanted=new(wanted), slot=new(slot),
        beta=new(beta), position=new(position), blend=new(blend), slot_above=new(slot_above),
        position_above=new(position_above), next_step=new(ends),
    )  # fmt: skip
