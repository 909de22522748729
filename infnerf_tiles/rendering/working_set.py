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
