"""March rays through the octree and emit packed samples (cone marching, DESIGN: step lattice t_i = near (1+c)^i).

Step positions follow from the integer i and the ray alone. Skipping empty cells, blocks of them and nodes only leaves
out steps; it never moves one, so a ray cut into pieces gives the same samples as in one go.
"""

import math

import numpy as np
import torch
from numba import prange

from infnerf_tiles.arrays import Float32, Int32, Int64
from infnerf_tiles.compiled import njit
from infnerf_tiles.kernels.arena import Arena, MarchSettings, Rays, Samples
from infnerf_tiles.kernels.blocks import log_blocks
from infnerf_tiles.kernels.cpu.lattice import (
    FIXED_BITS,
    Packet,
    block_size,
    fixed,
    most_halvings,
    packet_of,
    place_at,
    ray_in,
)
from infnerf_tiles.kernels.cpu.threads import parallel_region
from infnerf_tiles.kernels.cpu.walk import GROUP, Nodes, is_set, walk

_KNOWN = 128
"""Samples of a ray that are noted while they are counted; rays with more are walked once more."""

@njit(cache=True, parallel=True)
def _count(
    packet: Packet, nodes: Nodes, limit: int, adapt: bool, counts: Int64, ends: Int64, known_step: Int32,
    known_slot: Int32,
) -> None:  # fmt: skip
    """Count each ray's samples, and note the steps (from the ray's first) and slots of as many as there is room for."""
    for group in prange((packet.start.shape[0] + GROUP - 1) // GROUP):
        walk(np.int64(group), packet, nodes, limit, adapt, counts, ends, known_step, known_slot)


@njit(cache=True)
def _round_inside(u: float, nodes: float) -> np.float32:
    """Coordinate u as float32, inside the same of `nodes` equal parts of [0, 1) as u is."""
    rounded = np.float32(u)
    # a part's faces are float32 numbers, so rounding can only reach the upper one, where the next part begins
    upper = np.float32((math.floor(u * nodes) + 1.0) * (1.0 / nodes))
    return np.nextafter(upper, np.float32(0.0)) if rounded >= upper else rounded


@njit(cache=True)
def _store_position(
    out: Float32, m: int, place: tuple[float, float, float], slot: int, level: Int32, treelet: Int32, top_level: Int32,
    top_xyz: Int64,
) -> None:  # fmt: skip
    """Position of sample m in the cube of the treelet root of the node that draws it."""
    tree = treelet[slot]
    top = top_level[tree]
    scale, nodes = float(1 << top), float(1 << (level[slot] - top))
    out[m, 0] = _round_inside(place[0] * scale - top_xyz[tree, 0], nodes)
    out[m, 1] = _round_inside(place[1] * scale - top_xyz[tree, 1], nodes)
    out[m, 2] = _round_inside(place[2] * scale - top_xyz[tree, 2], nodes)


@njit(cache=True, parallel=True)
def _fill(
    packet: Packet,
    nodes: Nodes,
    adapt: bool,
    level: Int32,
    treelet: Int32,
    lambda_max: Float32,
    top_level: Int32,
    top_xyz: Int64,
    above: Int32,
    counts: Int64,
    known_step: Int32,
    known_slot: Int32,
    long_row: Int64,
    long_step: Int32,
    long_slot: Int32,
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
    for q in prange(packet.start.shape[0]):
        kept = ray_start[q + 1] - ray_start[q]
        if kept == 0:
            continue
        ray = ray_in(packet, q)
        begin = max(ray.first, packet.start[q])
        most = most_halvings(ray)
        half_step = 1.0 + 0.5 * ray.c
        size, long = 1, 0.0
        # thinning: run j of neighbouring samples, [j counts / kept, (j + 1) counts / kept), keeps its middle one
        j = 0
        middle, end = (counts[q] // kept - 1) // 2, counts[q] // kept
        length = 0.0
        # q is unsigned, which does not mix with the other
        steps, slots, row = known_step, known_slot, np.int64(q)
        if counts[q] > known_step.shape[1]:
            steps, slots, row = long_step, long_slot, long_row[q]
        for n in range(counts[q]):
            i = begin + steps[row // GROUP, n, row % GROUP]
            slot = slots[row // GROUP, n, row % GROUP]
            lev = level[slot]
            s = i + ray.offset
            t = ray.mid_near * math.exp(s * ray.log_q)
            wanted = ray.lambda_near - s * ray.log2_q
            block = 1
            if adapt and wanted > lev:
                block = block_size(i, wanted, lev, ray.log2_q, most)
            if block == 1:
                length += t * ray.c / half_step
            else:
                if block != size:
                    size, half = block, block >> 1
                    long = math.exp((size - half) * ray.log_q) - math.exp(-half * ray.log_q)
                length += t / half_step * long
            if n == middle:
                m = ray_start[q] + j
                beta = 1.0
                if lev > 0:
                    beta = min(max(min(wanted, lambda_max[slot]) - (lev - 1), 0.0), 1.0)
                tree = treelet[slot]
                blend = 1.0
                other = -1
                place = place_at(ray, t)
                if lev == top_level[tree] and beta < 1.0 and above[tree] >= 0:
                    blend = beta
                    beta = 1.0
                    other = above[tree]
                    # where the treelet above draws nothing, its field is unknown rather than empty
                    shift = FIXED_BITS - level[other] - nodes.log_cells
                    fx, fy, fz = fixed(place[0]), fixed(place[1]), fixed(place[2])
                    if not is_set(nodes.occupancy, other, fx, fy, fz, shift, nodes.log_cells):
                        other = -1
                out_ray[m] = q
                out_t[m] = t
                out_wanted[m] = wanted
                out_slot[m] = slot
                out_beta[m] = beta
                out_blend[m] = blend
                out_slot_above[m] = other
                _store_position(out_position, m, place, slot, level, treelet, top_level, top_xyz)
                if other >= 0:
                    _store_position(out_position_above, m, place, other, level, treelet, top_level, top_xyz)
                else:
                    out_position_above[m, 0] = 0.0
                    out_position_above[m, 1] = 0.0
                    out_position_above[m, 2] = 0.0
            if n == end - 1:
                out_dt[m] = length
                length = 0.0
                j += 1
                front, end = end, (j + 1) * counts[q] // kept
                middle = (front + end - 1) // 2


def _notes(num: int, room: int) -> tuple[Int32, Int32]:
    """Room for steps and slots of `room` samples of each ray: [groups of rays, samples, rays of a group].

    Samples come first, since most rays have few: what no ray of a group reaches is never touched.
    """
    shape = (-(-num // GROUP), room, GROUP)
    return np.empty(shape, np.int32), np.empty(shape, np.int32)


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
    packet = packet_of(rays, settings, start)
    counts = np.zeros(num, np.int64)
    ends = np.empty(num, np.int64)
    log_cells = arena.occupancy_cells.bit_length() - 1
    nodes = Nodes(
        root=arena.root, children=arena.children.numpy(), any_occupied=arena.any_occupied.numpy(),
        occupancy=arena.occupancy.numpy(), log_cells=log_cells, blocks=arena.blocks.numpy(),
        log_blocks=log_blocks(log_cells),
    )  # fmt: skip
    most = np.iinfo(np.int64).max if limit is None else limit
    known = _notes(num, min(most, _KNOWN))
    with parallel_region():
        _count(packet, nodes, most, adapt, counts, ends, *known)
        # few rays, if any, have more samples than were noted
        long = np.flatnonzero(counts > known[0].shape[1])
        again, long_row = counts[long], np.zeros(num, np.int64)
        noted = _notes(len(long), int(again.max(initial=0)))
        if len(long):
            long_row[long] = np.arange(len(long))
            few = packet._replace(
                origins=packet.origins[long], directions=packet.directions[long], footprint=packet.footprint[long],
                offset=packet.offset[long], start=packet.start[long],
            )  # fmt: skip
            _count(few, nodes, most, adapt, again, np.empty_like(again), *noted)
        ray_start = np.zeros(num + 1, np.int64)
        np.cumsum(counts if keep is None else np.minimum(counts, keep), out=ray_start[1:])
        m = int(ray_start[-1])
        ray, slot, slot_above = (np.empty(m, np.int32) for _ in range(3))
        t, dt, wanted, beta, blend = (np.empty(m, np.float32) for _ in range(5))
        position, position_above = np.empty((m, 3), np.float32), np.empty((m, 3), np.float32)
        _fill(
            packet, nodes, adapt, arena.level.numpy(), arena.treelet.numpy(), arena.lambda_max.numpy(),
            arena.top_level.numpy(), arena.top_xyz.numpy(), arena.above.numpy(), counts, *known, long_row, *noted,
            ray_start, ray, t, dt, wanted, slot, beta, position, blend, slot_above, position_above,
        )  # fmt: skip
    new = torch.from_numpy
    return Samples(
        ray_start=new(ray_start), ray=new(ray), t=new(t), dt=new(dt), wanted=new(wanted), slot=new(slot),
        beta=new(beta), position=new(position), blend=new(blend), slot_above=new(slot_above),
        position_above=new(position_above), next_step=new(ends),
    )  # fmt: skip
