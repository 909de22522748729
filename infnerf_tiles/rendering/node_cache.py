"""Resident nodes and treelet bases: least recently used out first, never more bytes than the budget."""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from infnerf_tiles.arrays import AnyArray, Bool, Int32, Int64
from infnerf_tiles.errors import BudgetError, DamagedNodeError, DamagedStoreError
from infnerf_tiles.field.linking import link
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.geometry.octree import Octree
from infnerf_tiles.kernels.arena import Arena
from infnerf_tiles.rendering.prefetch import Item, Kind, Prefetcher
from infnerf_tiles.rendering.scene import drawable_octree
from infnerf_tiles.rendering.slot_memory import PAGE, SlotMemory
from infnerf_tiles.store.index import SceneIndex
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.units import format_bytes
from infnerf_tiles.volume.occupancy import any_occupied

_LINK_BYTES = 96
"""What a resident node costs besides its rows: links, keys and book-keeping."""
_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class CacheCounters:
    """What the cache did so far. Nodes and bases count alike; bytes are those of the rows, decompressed."""

    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    evictions: int = 0


class _WorkingSet(NamedTuple):
    """Rows of the index's node table (ascending) and of its treelet table."""

    nodes: Int64
    treelets: Int64


class NodeCache:
    """Loads rows of a scene store into an `Arena` and keeps them while there is room.

    One caller at a time: the arena that `ensure` returns is whole until the next `ensure`.
    """

    def __init__(
        self,
        store: SceneStore,
        index: SceneIndex,
        shape: FieldShape,
        byte_budget: int,
        *,
        threads: int = 4,
        prefetch_bytes: int = 0,
    ) -> None:
        """`byte_budget`: most bytes that resident rows take. `threads`: rows read at the same time. `prefetch_bytes`:
        most bytes of rows read ahead, on top of that."""
        self.byte_budget = byte_budget
        self.counters = CacheCounters()
        self._store = store
        self._index = index
        self._shape = shape
        self._octree = Octree.from_keys(index.keys)
        self._dead: Bool = ~np.isin(index.keys, drawable_octree(index).keys)
        self._damaged: list[str] = []
        self._row_of_root = self._octree.index_of(index.root_keys)
        # bases begin on whole pages, so that a released one gives all its memory back
        align = max(1, PAGE // (4 * shape.features))
        self._base_stride = -(-shape.base_rows // align) * align
        self.node_bytes = shape.node_bytes + _LINK_BYTES
        self.base_bytes = 4 * self._base_stride * shape.features
        num_slots = max(1, min(int((~self._dead).sum()), byte_budget // self.node_bytes))
        num_places = max(1, min(index.num_treelets, byte_budget // self.base_bytes))
        self._tables = SlotMemory(num_slots, 4 * shape.row_length)
        self._bases = SlotMemory(num_places, self.base_bytes)
        self._occupancy = np.zeros((num_slots, shape.occupancy_bytes), np.uint8)
        self._own_occupied = np.zeros((num_slots, 1), np.uint8)
        # node row <-> slot of the arena, treelet row <-> place in the dense buffer; -1 for none
        self._slot_of: Int32 = np.full(index.num_nodes, -1, np.int32)
        self._row_at: Int64 = np.full(num_slots, -1, np.int64)
        self._place_of: Int32 = np.full(index.num_treelets, -1, np.int32)
        self._treelet_at: Int64 = np.full(num_places, -1, np.int64)
        self._slot_used: Int64 = np.zeros(num_slots, np.int64)
        self._place_used: Int64 = np.zeros(num_places, np.int64)
        self._tick = 0
        self._total = 0
        self._arena: Arena | None = None
        self.prefetch_bytes = prefetch_bytes
        self._ahead = Prefetcher(self._read, self._bytes_ahead, prefetch_bytes)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="node-cache")
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Bytes that resident rows take now."""
        return self._total

    @property
    def prefetched_bytes(self) -> int:
        """Bytes of rows that were read ahead and are not resident yet."""
        return self._ahead.num_bytes

    @property
    def num_nodes(self) -> int:
        """Nodes that are resident now."""
        return int((self._row_at >= 0).sum())

    @property
    def num_bases(self) -> int:
        """Treelet bases that are resident now."""
        return int((self._treelet_at >= 0).sum())

    @property
    def keys_by_slot(self) -> Int64:
        """int64[S] key of the node in each slot of the arena, -1 where there is none."""
        return np.where(self._row_at >= 0, self._index.keys[np.maximum(self._row_at, 0)], -1)

    @property
    def damaged_nodes(self) -> tuple[str, ...]:
        """Ids of the nodes that turned out damaged so far; what is below them is not drawn either."""
        return tuple(self._damaged)

    @property
    def smallest_working_set(self) -> int:
        """Bytes without which some sample cannot be drawn: the most that one node takes with all that it stands on."""
        levels = self._octree.levels.astype(np.int64)
        bands = self._index.bands[self._index.treelets]
        need = (levels + 1) * self.node_bytes + (bands + 1) * self.base_bytes
        return int(need[~self._dead].max(initial=0))

    def bytes_of(self, keys: Int64) -> int:
        """Bytes that the nodes int64[k] and all they stand on would take."""
        return self._bytes(self._working_set(keys))

    def ensure(self, keys: Int64) -> Arena:
        """The arena with the nodes int64[k] resident, and whatever they stand on: their ancestors up to the root, and
        the bases of all their treelets.

        A node whose row is damaged counts as missing with everything below it, so that its ancestors draw there; a
        damaged base takes its whole treelet along. That is logged once per node. DamagedStoreError if that node is
        the octree's root. BudgetError if the set exceeds the budget.
        """
        with self._lock:
            wanted = self._working_set(keys)
            if self._bytes(wanted) > self.byte_budget:
                raise BudgetError(
                    f"memory budget: expected at least {format_bytes(self._bytes(wanted))} for {len(wanted.nodes)} "
                    f"nodes and {len(wanted.treelets)} bases, got {format_bytes(self.byte_budget)}"
                )
            missing = self._touch(wanted)
            if len(missing.nodes) or len(missing.treelets):
                self._make_room(self._bytes(missing))
                self._load(missing)
                self._arena = None
            if self._arena is None:
                self._arena = self._linked()
            return self._arena

    def prefetch(self, keys: Int64) -> None:
        """Read ahead what the nodes int64[k] will need, as far as the room for that goes; returns at once."""
        with self._lock:
            wanted = self._working_set(keys)
            # coarse ones first: without them the fine ones cannot be drawn
            nodes = wanted.nodes[self._slot_of[wanted.nodes] < 0]
            treelets = wanted.treelets[self._place_of[wanted.treelets] < 0]
            items: list[Item] = [("base", int(row)) for row in treelets]
            items += [("node", int(row)) for row in nodes]
            self._ahead.request(items)

    def close(self) -> None:
        """End the threads that read."""
        self._ahead.close()
        self._pool.shutdown(wait=True)

    def _bytes(self, rows: _WorkingSet) -> int:
        return len(rows.nodes) * self.node_bytes + len(rows.treelets) * self.base_bytes

    def _working_set(self, keys: Int64) -> _WorkingSet:
        rows = self._octree.index_of(keys)
        marked = np.zeros(self._octree.num_nodes, np.bool_)
        new = rows[rows >= 0]
        while len(new):
            marked[new] = True
            above = self._octree.parents[new]
            above = above[above >= 0]
            new = np.unique(above[~marked[above]])
        nodes = np.flatnonzero(marked & ~self._dead)
        return _WorkingSet(nodes, np.unique(self._index.treelets[nodes]).astype(np.int64))

    def _touch(self, wanted: _WorkingSet) -> _WorkingSet:
        """Mark what is resident as used now, which pins it; returns what is not resident."""
        self._tick += 1
        slots, places = self._slot_of[wanted.nodes], self._place_of[wanted.treelets]
        self._slot_used[slots[slots >= 0]] = self._tick
        self._place_used[places[places >= 0]] = self._tick
        missing = _WorkingSet(wanted.nodes[slots < 0], wanted.treelets[places < 0])
        num_missing = len(missing.nodes) + len(missing.treelets)
        self.counters.misses += num_missing
        self.counters.hits += len(slots) + len(places) - num_missing
        return missing

    # --- what comes and goes: only the next two methods change what is resident ----------------------------------

    def _admit(self, kind: Kind, row: int) -> int:
        """Give a node or a base its piece of memory, pinned; returns slot or place."""
        if kind == "node":
            at = self._tables.take()
            self._slot_of[row], self._row_at[at], self._slot_used[at] = at, row, self._tick
            self._total += self.node_bytes
        else:
            at = self._bases.take()
            self._place_of[row], self._treelet_at[at], self._place_used[at] = at, row, self._tick
            self._total += self.base_bytes
        return at

    def _drop(self, kind: Kind, row: int) -> None:
        """Take a node's or a base's memory back."""
        if kind == "node":
            at = int(self._slot_of[row])
            self._slot_of[row], self._row_at[at] = -1, -1
            self._tables.release(at)
            self._total -= self.node_bytes
        else:
            at = int(self._place_of[row])
            self._place_of[row], self._treelet_at[at] = -1, -1
            self._bases.release(at)
            self._total -= self.base_bytes
        self._arena = None

    def _make_room(self, num_bytes: int) -> None:
        excess = self._total + num_bytes - self.byte_budget
        if excess <= 0:
            return
        for kind, row in self._least_recent():
            self._drop(kind, row)
            self.counters.evictions += 1
            excess -= self.node_bytes if kind == "node" else self.base_bytes
            if excess <= 0:
                return

    def _least_recent(self) -> Iterator[Item]:
        """What is not pinned, least recently used first; of what was used together, the finest level first."""
        slots = np.flatnonzero((self._row_at >= 0) & (self._slot_used < self._tick))
        places = np.flatnonzero((self._treelet_at >= 0) & (self._place_used < self._tick))
        rows, treelets = self._row_at[slots], self._treelet_at[places]
        used = np.concatenate([self._slot_used[slots], self._place_used[places]])
        level = np.concatenate([self._octree.levels[rows], self._octree.levels[self._row_of_root[treelets]]])
        for i in np.lexsort((-level, used)).tolist():
            yield ("node", int(rows[i])) if i < len(rows) else ("base", int(treelets[i - len(rows)]))

    def _load(self, missing: _WorkingSet) -> None:
        admitted: list[Item] = [("node", int(row)) for row in missing.nodes]
        admitted += [("base", int(row)) for row in missing.treelets]
        work = [(item, self._admit(*item)) for item in admitted]
        tables = self._tables.array(np.float32, self._shape.row_length)
        bases = self._bases.array(np.float32, self._base_stride, self._shape.features)

        def fill(job: tuple[Item, int]) -> DamagedNodeError | None:
            item, at = job
            try:
                rows = self._ahead.take(item) or self._read(item)
            except DamagedNodeError as error:
                return error
            if item[0] == "node":
                tables[at], self._occupancy[at] = rows
                self._own_occupied[at] = self._occupancy[at].any()
            else:
                bases[at, : rows[0][..., 0].size] = rows[0].reshape(-1, self._shape.features)
            return None

        try:
            outcomes = list(self._pool.map(fill, work))
        except BaseException:  # a lost network, an interrupt: nobody knows which rows were filled
            for kind, row in admitted:
                self._drop(kind, row)
            raise
        for item, outcome in zip(admitted, outcomes, strict=True):
            if outcome is None:
                self.counters.bytes_read += self._bytes_ahead(item)
        damaged = [(kind, row, error) for (kind, row), error in zip(admitted, outcomes, strict=True) if error]
        if damaged:
            self._bury(damaged, admitted)

    def _read(self, item: Item) -> tuple[AnyArray, ...]:
        """What is stored of a node (table, occupancy) or of a base (grid)."""
        kind, row = item
        if kind == "base":
            return (self._store.read_base(int(self._index.base_slots[row])),)
        slot = int(self._index.slots[row])
        return self._store.read_node(slot), self._store.read_occupancy(slot)

    def _bytes_ahead(self, item: Item) -> int:
        shape = self._shape
        return 2 * shape.row_length + shape.occupancy_bytes if item[0] == "node" else 2 * shape.base_length

    def _bury(self, damaged: list[tuple[Kind, int, DamagedNodeError]], admitted: list[Item]) -> None:
        """Take damaged nodes and everything below them out of the scene."""
        for kind, row, error in damaged:
            top = row if kind == "node" else int(self._row_of_root[row])
            if top == 0:
                for admitted_kind, admitted_row in admitted:
                    self._drop(admitted_kind, admitted_row)
                raise DamagedStoreError(
                    f"scene {self._store.name}: the octree's root cannot be drawn ({error}); run 'verify --repair' "
                    "and then 'train'"
                ) from error
            if not self._dead[top]:
                node = NodeId.from_key(int(self._index.keys[top]))
                self._damaged.append(str(node))
                _log.warning("node %s is damaged, coarser nodes are drawn there: %s", node, error)
            self._dead[top] = True
        for level in range(1, self._octree.depth + 1):
            rows = np.flatnonzero(self._octree.levels == level)
            self._dead[rows] |= self._dead[self._octree.parents[rows]]
        for row in np.flatnonzero(self._dead & (self._slot_of >= 0)).tolist():
            self._drop("node", row)
        for treelet in np.flatnonzero(self._dead[self._row_of_root] & (self._place_of >= 0)).tolist():
            self._drop("base", treelet)

    def _linked(self) -> Arena:
        shape, index = self._shape, self._index
        row = np.maximum(self._row_at, 0)
        treelet_row = np.maximum(self._treelet_at, 0)
        place = self._place_of[index.treelets[row]]
        # a node whose base is not resident cannot be drawn, hence must not be reached
        keys = np.where((self._row_at >= 0) & (place >= 0), index.keys[row], -1)
        links = link(keys, np.maximum(place, 0), index.root_keys[treelet_row])
        stride = self._base_stride
        return Arena(
            cells=shape.cells,
            base_cells=shape.base_cells,
            occupancy_cells=shape.occupancy_cells,
            root=links.root,
            tables=torch.from_numpy(self._tables.array(np.float32, shape.table_size, shape.features)),
            dense=torch.from_numpy(self._bases.array(np.float32, stride, shape.features).reshape(-1, shape.features)),
            dense_offset=torch.arange(self._bases.slots, dtype=torch.int64) * stride,
            dense_grids=torch.ones(self._bases.slots, dtype=torch.int32),
            level=torch.from_numpy(links.level),
            parent=torch.from_numpy(links.parent),
            children=torch.from_numpy(links.children),
            treelet=torch.from_numpy(links.treelet),
            lambda_max=torch.from_numpy(index.lambda_max[row]),
            occupancy=torch.from_numpy(self._occupancy),
            any_occupied=torch.from_numpy(any_occupied(self._own_occupied, links.level, links.children)),
            top_level=torch.from_numpy(links.top_level),
            top_xyz=torch.from_numpy(links.top_xyz),
            above=torch.from_numpy(links.above),
        )
