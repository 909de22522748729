"""Rays on their way through the octree: which steps of each have a sample, and which node draws it.

A ray jumps over empty cells, blocks of cells and nodes. Jumps only leave out steps, never one in an occupied cell, and
move none.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from infnerf_tiles.arrays import Int32, Int64, UInt8
from infnerf_tiles.compiled import njit
from infnerf_tiles.kernels.cpu.lattice import (
    FIXED_BITS,
    Packet,
    Ray,
    Ways,
    block_size,
    fixed,
    most_halvings,
    place_at,
    ray_in,
    steps_inside,
    until,
    ways_of,
)

GROUP = 32
"""Rays that a thread follows at once: enough that it seldom waits, few enough to stay in its nearest cache."""


class Nodes(NamedTuple):
    """Resident nodes as rays meet them: of an `Arena`, with bits of blocks of cells."""

    root: int
    """Slot of the root."""
    children: Int32
    """int32 [S, 8]."""
    any_occupied: UInt8
    """uint8 [S]: 0 where nothing is in the node or below it."""
    occupancy: UInt8
    """uint8 [S, bytes]: a bit per cell, x fastest."""
    log_cells: int
    """Logarithm of the cells per edge."""
    blocks: UInt8
    """uint8 [S, bytes]: a bit per block of cells, set where any of them is."""
    log_blocks: int
    """Logarithm of the blocks per edge."""


_WALKER = np.dtype(
    [
        *((name, np.float64) for name in Ray._fields if name not in ("c", "first", "last")),
        *((name, np.float64) for name in Ways._fields if not name.startswith("side")),
        *((name, np.int64) for name in ("side_x", "side_y", "side_z", "last", "most")),
        ("q", np.int64), ("begin", np.int64), ("count", np.int64),
        ("i", np.int64), ("t", np.float64), ("fx", np.int64), ("fy", np.int64), ("fz", np.int64),
        ("nx", np.int64), ("ny", np.int64), ("nz", np.int64), ("region", np.int64), ("until", np.int64),
        ("slot", np.int64), ("level", np.int64), ("shift", np.int64), ("blank", np.bool_), ("full", np.bool_),
    ],
    align=True,
)  # fmt: skip
"""A ray on its way: its lattice and how it leaves cells; ray number, first step and samples so far; step, distance and
place; a place in the cube where its node draws, that cube's size, and the step behind which it does not draw any more;
node, level, size of the cell or empty cube around the step, whether nothing is in it or below it, whether it is full.
"""


@njit(cache=True)
def is_set(bits: UInt8, slot: int, fx: int, fy: int, fz: int, shift: int, log_edge: int) -> bool:
    """Whether a node's bit around a place is set; it has 2^log_edge bits per edge, 2^shift fixed-point units each."""
    low = (1 << log_edge) - 1
    bit = ((((fz >> shift) & low) << log_edge) + ((fy >> shift) & low) << log_edge) + ((fx >> shift) & low)
    return bool((bits[slot, bit >> 3] >> (bit & 7)) & 1)


@njit(cache=True)
def _set_out(w: Any, ray: Ray, q: int, begin: int) -> None:
    """Start a walker."""
    ways = ways_of(ray)
    w.ox, w.oy, w.oz, w.dx, w.dy, w.dz = ray.ox, ray.oy, ray.oz, ray.dx, ray.dy, ray.dz
    w.offset, w.mid_near, w.log_q, w.log2_q = ray.offset, ray.mid_near, ray.log_q, ray.log2_q
    w.lambda_near, w.last, w.most = ray.lambda_near, ray.last, most_halvings(ray)
    w.inverse_x, w.inverse_y, w.inverse_z = ways.inverse_x, ways.inverse_y, ways.inverse_z
    w.guarded_x, w.guarded_y, w.guarded_z = ways.guarded_x, ways.guarded_y, ways.guarded_z
    w.side_x, w.side_y, w.side_z, w.inverse_log_q = ways.side_x, ways.side_y, ways.side_z, ways.inverse_log_q
    w.q, w.begin, w.count, w.i, w.until = q, begin, 0, begin, 0


@njit(cache=True)
def _find_node(w: Any, nodes: Nodes) -> None:
    """Walk down to the node that draws a walker's step."""
    wanted = w.lambda_near - (w.i + w.offset) * w.log2_q
    slot, level, region = nodes.root, 0, FIXED_BITS
    while True:
        blank = nodes.any_occupied[slot] == 0
        if blank or level >= wanted:
            break
        bit = FIXED_BITS - 1 - level
        below = nodes.children[slot, ((w.fx >> bit) & 1) + 2 * ((w.fy >> bit) & 1) + 4 * ((w.fz >> bit) & 1)]
        region = bit
        if below < 0:
            # the missing child's cube is where this node draws
            break
        slot = below
        level += 1
    w.slot, w.level, w.region, w.blank = slot, level, region, blank
    w.nx, w.ny, w.nz = w.fx, w.fy, w.fz
    # behind it coarser nodes draw, whose cells are others
    w.until = until(w, w.i, level)


@njit(cache=True)
def _emit(w: Any, stop: int, limit: int, adapt: bool, known_step: Int32, known_slot: Int32) -> int:
    """Take the samples of a full cell, steps i .. stop - 1; the step to go on from, or -1 at the limit."""
    i = int(w.i)
    while i < stop:
        size = 1
        if adapt:
            wanted = w.lambda_near - (i + w.offset) * w.log2_q
            if wanted > w.level:
                size = block_size(i, wanted, w.level, w.log2_q, w.most)
        front = i & -size
        middle = front + (size >> 1)
        if i <= middle < stop:
            if w.count < known_step.shape[1]:
                known_step[w.q // GROUP, w.count, w.q % GROUP] = middle - w.begin
                known_slot[w.q // GROUP, w.count, w.q % GROUP] = w.slot
            w.count += 1
            if w.count == limit:
                w.i = middle + 1
                return -1
        i = min(front + size, stop)
    return i


@njit(cache=True)
def walk(
    group: np.int64,
    packet: Packet,
    nodes: Nodes,
    limit: int,
    adapt: bool,
    counts: Int64,
    ends: Int64,
    known_step: Int32,
    known_slot: Int32,
) -> None:
    """Count the samples of a group of rays; note the steps (from the ray's first) and slots of as many as there is room
    for, [group, sample, ray of the group].

    A step's place, cell and jump each wait for the one before. So all rays take each of the three in turn: they do not
    wait for each other, and the processor works on several at once.
    """
    walkers = np.empty(GROUP, _WALKER)
    going = np.empty(GROUP, np.int64)
    num = 0
    for q in range(group * GROUP, min((group + 1) * GROUP, packet.start.shape[0])):
        counts[q] = 0
        ends[q] = -1
        if packet.start[q] < 0:
            continue
        ray = ray_in(packet, q)
        begin = max(ray.first, packet.start[q])
        if limit <= 0:
            ends[q] = begin
        elif begin < ray.last:
            _set_out(walkers[num], ray, q, begin)
            going[num] = num
            num += 1
    while num > 0:
        for a in range(num):
            w = walkers[going[a]]
            w.t = w.mid_near * math.exp((w.i + w.offset) * w.log_q)
            x, y, z = place_at(w, w.t)
            w.fx, w.fy, w.fz = fixed(x), fixed(y), fixed(z)
        for a in range(num):
            w = walkers[going[a]]
            if w.i >= w.until or ((w.fx ^ w.nx) | (w.fy ^ w.ny) | (w.fz ^ w.nz)) >> w.region:
                _find_node(w, nodes)
            full, shift = False, w.region
            if not w.blank:
                shift = FIXED_BITS - w.level - nodes.log_blocks
                if is_set(nodes.blocks, w.slot, w.fx, w.fy, w.fz, shift, nodes.log_blocks):
                    shift = FIXED_BITS - w.level - nodes.log_cells
                    full = is_set(nodes.occupancy, w.slot, w.fx, w.fy, w.fz, shift, nodes.log_cells)
            w.shift, w.full = shift, full
        still = 0
        for a in range(num):
            w = walkers[going[a]]
            stop = min(w.i + 1 + steps_inside(w, w.t, w.fx, w.fy, w.fz, w.shift), w.until)
            if w.full:
                stop = _emit(w, stop, limit, adapt, known_step, known_slot)
            if stop < 0:
                ends[w.q] = w.i
            if stop < 0 or stop >= w.last:
                counts[w.q] = w.count
            else:
                w.i = stop
                going[still] = going[a]
                still += 1
        num = still
