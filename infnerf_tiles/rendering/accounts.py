"""What drawing costs in memory, and what a cache counts."""

import threading
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.geometry.octree import Octree
from infnerf_tiles.rendering.scene import drawable_octree
from infnerf_tiles.rendering.slot_memory import PAGE
from infnerf_tiles.store.index import SceneIndex

_LINK_BYTES = 96
"""What a resident node costs besides its rows: links, keys and book-keeping."""


class RowCosts(NamedTuple):
    """Bytes: of a resident node, of a resident base, and of one row that is being read, stored and decoded."""

    node: int
    base: int
    read: int


def row_costs(shape: FieldShape, *, half: bool = False) -> RowCosts:
    """What the rows of a scene cost in memory. half: resident ones are float16, as on a GPU, and not float32."""
    value = 2 if half else 4
    return RowCosts(
        node=value * shape.row_length + shape.occupancy_bytes + shape.block_bytes + _LINK_BYTES,
        base=value * base_stride(shape) * shape.features,
        read=2 * max(2 * shape.row_length + shape.occupancy_bytes, 2 * shape.base_length),
    )


def base_stride(shape: FieldShape) -> int:
    """Rows of the dense buffer per place: bases begin on whole pages, so that a released one gives all memory back."""
    align = max(1, PAGE // (4 * shape.features))
    return -(-shape.base_rows // align) * align


def smallest_working_set(
    index: SceneIndex, shape: FieldShape, drawable: Octree | None = None, *, half: bool = False
) -> int:
    """Bytes without which some sample of a scene cannot be drawn: the most that one node takes with all that it stands
    on, and one row being read. drawable: the nodes that can be drawn, default: those that are trained. half: as in
    `row_costs`."""
    costs = row_costs(shape, half=half)
    octree = drawable_octree(index) if drawable is None else drawable
    if not octree.num_nodes:
        return 0
    rows = slice(None) if octree.num_nodes == index.num_nodes else Octree(index.keys).index_of(octree.keys)
    bands = index.bands[index.treelets[rows]].astype(np.int64)
    need = (octree.levels.astype(np.int64) + 1) * costs.node + (bands + 1) * costs.base
    return int(need.max()) + costs.read


class ByteMeter:
    """Bytes in use now and at most so far; any number of threads may share it."""

    def __init__(self) -> None:
        self.now = 0
        self.peak = 0
        self._lock = threading.Lock()

    def add(self, num_bytes: int) -> None:
        """Take that many bytes, or give them back where it is negative."""
        with self._lock:
            self.now += num_bytes
            self.peak = max(self.peak, self.now)


@dataclass(kw_only=True)
class CacheCounters:
    """What the cache did so far. Nodes and bases count alike; bytes are those of the rows, decompressed.

    hits: were resident when asked for. misses: were not; of them `ready` had been read ahead, `late` were being read
    ahead and waited for, the others were read on demand. bytes_read: of all reads, those ahead included. touched_bytes:
    of the distinct rows that were ever drawn with.
    """

    hits: int = 0
    misses: int = 0
    ready: int = 0
    late: int = 0
    bytes_read: int = 0
    touched_bytes: int = 0
    evictions: int = 0

    @property
    def waits(self) -> int:
        """Rows that drawing had to wait for."""
        return self.misses - self.ready

    @property
    def hit_rate(self) -> float:
        """Share of what was asked for that was in memory, in either tier; 1 before anything was."""
        asked = self.hits + self.misses
        return (self.hits + self.ready) / asked if asked else 1.0
