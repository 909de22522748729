"""Rays carried through the octree front to back: each as far as the resident nodes reach, then the next nodes are read.

Seen from one point, the cubes of an octree have an order in which none hides an earlier one. Rays wait where they lack
a node; what the first of them in that order lack is read next, so a picture reads a node once however few fit.
"""

from typing import Protocol

import numpy as np

from infnerf_tiles.arrays import Bool, Float64, Int32, Int64
from infnerf_tiles.geometry.node_id import MAX_LEVEL
from infnerf_tiles.geometry.octree import Octree
from infnerf_tiles.kernels.arena import Arena
from infnerf_tiles.rendering.node_cache import NodeCache
from infnerf_tiles.rendering.waiting import Abort, Aborted
from infnerf_tiles.rendering.working_set import NextUse

_SCOUTS = 16  # one ray of so many looks for nodes that are needed later


class Front(Protocol):
    """Rays that stand somewhere, by row number."""

    def waiting(self, rows: Int64 | None) -> Int64:
        """Which of these rays (None: of all) go on, int64[k]."""

    def reach(
        self, rows: Int64, children: Int32, held: Bool, dead: Bool, *, beyond: bool = False
    ) -> tuple[Int64, Int32, Bool]:
        """As `kernels.cpu.reach`, from where they stand."""

    def march(self, rows: Int64, arena: Arena, ends: Int64) -> None:
        """Carry rays forward to steps int64[k]."""


def front_order(octree: Octree, rows: Int64, eye: Float64) -> Int64:
    """int64[k]: places of nodes in an order in which, seen from `eye`, no cube hides an earlier one, and a node comes
    right before what is below it.

    eye: float64[3], unit cube.
    """
    levels, xyz = octree.levels[rows].astype(np.int64), octree.xyz[rows]
    order: Int64 = np.zeros(len(rows), np.int64)
    for level in range(1, int(levels.max(initial=0)) + 1):
        cell = xyz >> np.maximum(levels - level, 0)[:, None]
        # the planes between eight brothers part them into near and far ones, axis by axis
        far = (cell & 1) ^ (eye * 2.0 ** (level - 1) >= (cell >> 1) + 0.5)
        digit = far[:, 0] + 2 * far[:, 1] + 4 * far[:, 2]
        order += np.where(levels >= level, digit, 0) << 3 * (MAX_LEVEL - level)
    return order


def carry(front: Front, cache: NodeCache, eye: Float64, eager_bytes: int, abort: Abort | None) -> None:
    """Carry rays to their ends.

    Nodes that are surely needed are read as the budget allows, up to `eager_bytes` at a time, since what is behind may
    turn out to be hidden; errors as of `NodeCache.ensure`.

    eye: float64[3], where the rays begin, unit cube.
    """
    octree = cache.octree
    met = np.zeros(octree.num_nodes, np.bool_)
    rows = front.waiting(None)
    if not len(rows):
        return
    arena = cache.ensure(octree.keys[:1], abort)
    waits_for: Int32 = np.full(int(rows.max()) + 1, -1, np.int32)
    while True:
        if abort is not None and abort():
            raise Aborted
        held, dead = cache.drawable, cache.dead
        ends, lacking, passed = front.reach(rows, octree.children, held, dead)
        cache.count_use(np.flatnonzero(passed & ~met))
        met |= passed
        waits_for[rows] = lacking
        front.march(rows, arena, ends)
        waiting = front.waiting(np.flatnonzero(waits_for >= 0))
        if not len(waiting):
            return
        wanted = np.unique(waits_for[waiting]).astype(np.int64)
        order = front_order(octree, wanted, eye)
        wanted = wanted[np.argsort(order)]
        first = int(order.min())
        if cache.missing_bytes(wanted) < min(eager_bytes, cache.byte_budget):
            wanted = np.concatenate([wanted, _scouted(front, cache, waiting, wanted, eye)])
        chosen = _affordable(cache, wanted, eager_bytes)
        met[chosen] = True
        arena = cache.ensure(octree.keys[chosen], abort, next_use_from(octree, eye, first))
        held, dead = cache.drawable, cache.dead
        lacks = waits_for[waiting]
        rows = waiting[held[lacks] | dead[lacks]]


def next_use_from(octree: Octree, eye: Float64, first: int) -> NextUse:
    """When nodes int64[k] are needed next, if rays stand at place `first` of the order: what lies behind it in the
    order is needed by the next picture, beginning with its front."""

    def next_use(rows: Int64) -> Int64:
        order = front_order(octree, rows, eye) - first
        later: Int64 = np.where(order < 0, order + (1 << 3 * MAX_LEVEL), order)
        return later

    return next_use


def _scouted(front: Front, cache: NodeCache, waiting: Int64, known: Int64, eye: Float64) -> Int64:
    """Nodes that some of the rays lack further on, the nearest first."""
    octree = cache.octree
    held = cache.drawable
    _, _, met = front.reach(waiting[::_SCOUTS], octree.children, held, cache.dead, beyond=True)
    met &= ~held
    met[known] = False
    found = np.flatnonzero(met)
    return found[np.argsort(front_order(octree, found, eye))]


def _affordable(cache: NodeCache, rows: Int64, room: int) -> Int64:
    """The first of some nodes: at least one, and as many as fit the budget without reading more than `room` bytes."""
    few, many = 1, len(rows)
    while few < many:  # what a prefix costs only grows
        middle = (few + many + 1) // 2
        part = rows[:middle]
        if cache.bytes_of(part) <= cache.byte_budget and cache.missing_bytes(part) <= room:
            few = middle
        else:
            many = middle - 1
    return rows[:few]
