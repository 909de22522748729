"""What drawing with some nodes needs: their ancestors and the bases of all their treelets."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from infnerf_tiles.arrays import Bool, Int64
from infnerf_tiles.geometry.octree import Octree
from infnerf_tiles.store.index import SceneIndex

NextUse = Callable[[Int64], Int64]
"""When nodes, rows int64[k] of the index's octree, will be needed: the larger, the later."""


class WorkingSet(NamedTuple):
    """Rows of the index's node table (ascending) and of its treelet table."""

    nodes: Int64
    treelets: Int64


def working_set(octree: Octree, index: SceneIndex, rows: Int64, dead: Bool) -> WorkingSet:
    """Nodes int64[k] and all they stand on, without the dead ones.

    octree: of all nodes of the index, row for row. rows: -1 counts for nothing. dead: bool[n], nodes that count as
    missing.
    """
    new = np.unique(rows[rows >= 0])
    parts = [new]
    while len(new):
        above = octree.parents[new]
        new = np.unique(above[above >= 0]).astype(np.int64)
        parts.append(new)
    nodes = np.unique(np.concatenate(parts)).astype(np.int64)
    nodes = nodes[~dead[nodes]]
    return WorkingSet(nodes, np.unique(index.treelets[nodes]).astype(np.int64))


def eviction_order(used: Int64, level: Int64, later: Int64 | None, stale_before: int) -> list[int]:
    """In which order k things make room, as indices: what was used least recently first, and of what was used together,
    the finest level.

    used: int64[k], when each was used last. later: int64[k], when each is needed next; if given, what was used since
    `stale_before` comes after all else, and of that, what is needed last comes first.
    """
    order = np.lexsort((-level, used))
    if later is not None:
        fresh = used >= stale_before
        order = np.lexsort((-level, np.where(fresh, -later, used), fresh))
    return [int(k) for k in order]
