"""Resident nodes and treelet bases: least recently used out first, never more bytes than the budget.

Two tiers: rows read ahead wait in host memory (`HostRows`), those drawn with live in the arena (`ArenaMemory`).
"""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import torch

from infnerf_tiles.arrays import AnyArray, Bool, Int32, Int64
from infnerf_tiles.errors import BudgetError, DamagedNodeError, DamagedStoreError
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.geometry.octree import Octree
from infnerf_tiles.kernels.arena import Arena
from infnerf_tiles.rendering.accounts import ByteMeter, CacheCounters, row_costs, smallest_working_set
from infnerf_tiles.rendering.arena_memory import in_half, memory_for
from infnerf_tiles.rendering.host_rows import HostRows, Item, Kind
from infnerf_tiles.rendering.scene import drawable_octree
from infnerf_tiles.rendering.waiting import Abort, finish
from infnerf_tiles.rendering.working_set import NextUse, WorkingSet, eviction_order, working_set
from infnerf_tiles.store.fetch import Fetch
from infnerf_tiles.store.index import SceneIndex
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.units import format_bytes

LOCAL_THREADS, REMOTE_THREADS = 4, 16
"""Rows read at the same time: a disk is busy with few, a server far away has to be asked for many."""
_log = logging.getLogger(__name__)


class NodeCache:
    """Loads rows of a scene store into an `Arena` and keeps them while there is room.

    One caller at a time: the arena that `ensure` returns is whole until the next `ensure`. `octree` has a row for every
    node of the index; `dead`, bool[n], says which of them count as missing.
    """

    def __init__(
        self,
        store: SceneStore,
        index: SceneIndex,
        shape: FieldShape,
        byte_budget: int,
        *,
        threads: int | None = None,
        prefetch_bytes: int = 0,
        drawable: Octree | None = None,
        device: torch.device | None = None,
    ) -> None:
        """`byte_budget`: most bytes that resident rows take. `threads`: rows read at the same time for drawing, each of
        which takes up to `row_costs(shape).read` bytes on top of that; default: few from a disk, many from a server.
        `prefetch_bytes`: most bytes of rows read ahead, on top of that. `drawable`: the octree of what can be drawn,
        default: made from the index. `device`: where the arena lives, default: the CPU. BudgetError if there is not
        that much memory."""
        self.byte_budget = byte_budget
        self.counters = CacheCounters()
        self._store = store
        self._index = index
        self._shape = shape
        drawable = drawable_octree(index) if drawable is None else drawable
        whole = drawable.num_nodes == index.num_nodes
        self.octree = drawable if whole else Octree(index.keys)
        self.dead: Bool = np.zeros(index.num_nodes, np.bool_)
        if not whole:
            self.dead[:] = True
            self.dead[self.octree.index_of(drawable.keys)] = False
        self._damaged: list[str] = []
        self._row_of_root = self.octree.index_of(index.root_keys)
        self._half = in_half(device)
        self.node_bytes, self.base_bytes, self.read_bytes = row_costs(shape, half=self._half)
        num_slots = max(1, min(int((~self.dead).sum()), byte_budget // self.node_bytes))
        num_places = max(1, min(index.num_treelets, byte_budget // self.base_bytes))
        self._memory = memory_for(device, shape, num_slots, num_places)
        # node row <-> slot of the arena, treelet row <-> place in the dense buffer; -1 for none
        self._slot_of: Int32 = np.full(index.num_nodes, -1, np.int32)
        self._row_at: Int64 = np.full(num_slots, -1, np.int64)
        self._place_of: Int32 = np.full(index.num_treelets, -1, np.int32)
        self._treelet_at: Int64 = np.full(num_places, -1, np.int64)
        self._slot_used: Int64 = np.zeros(num_slots, np.int64)
        self._place_used: Int64 = np.zeros(num_places, np.int64)
        self._tick = self._begun = self._stale_before = 0
        self._total = 0
        self._arena: Arena | None = None
        self.prefetch_bytes = prefetch_bytes
        usual = REMOTE_THREADS if store.data.is_remote else LOCAL_THREADS
        self._meter = ByteMeter()
        self._ahead = HostRows(self._read, self._bytes_ahead, prefetch_bytes, self._meter, usual // 2)
        self._pool = ThreadPoolExecutor(threads or usual, thread_name_prefix="node-cache")
        self._lock, self._counting = threading.Lock(), threading.Lock()
        self._node_touched: Bool = np.zeros(index.num_nodes, np.bool_)
        self._base_touched: Bool = np.zeros(index.num_treelets, np.bool_)

    @property
    def num_bytes(self) -> int:
        """Bytes that resident rows take now."""
        return self._total

    @property
    def peak_bytes(self) -> int:
        """The most bytes so far: resident rows, rows read ahead, and rows being read."""
        return self._meter.peak

    @property
    def prefetched_bytes(self) -> int:
        """Bytes of rows that are being read ahead, or were and are not resident yet."""
        return self._ahead.num_bytes

    @property
    def num_nodes(self) -> int:
        """Nodes that are resident now."""
        return int((self._row_at >= 0).sum())

    @property
    def num_touched(self) -> int:
        """Distinct nodes that were ever drawn with."""
        return int(self._node_touched.sum())

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
        """Bytes without which some sample cannot be drawn; see `smallest_working_set`."""
        drawable = self.octree.without_rows(self.dead)
        return smallest_working_set(self._index, self._shape, drawable, half=self._half)

    @property
    def resident_keys(self) -> Int64:
        """int64[k] keys of the nodes that are resident now, ascending."""
        return np.sort(self._index.keys[self._row_at[self._row_at >= 0]])

    @property
    def coming_keys(self) -> Int64:
        """int64[k] keys of the nodes that are being read ahead or wait in host memory, ascending."""
        rows = [row for kind, row in self._ahead.items if kind == "node"]
        return np.sort(self._index.keys[np.array(rows, np.int64)])

    @property
    def drawable(self) -> Bool:
        """bool[n]: nodes that are resident with their bases."""
        drawable: Bool = np.zeros(len(self._slot_of), np.bool_)
        rows = self._row_at[self._row_at >= 0]
        drawable[rows] = self._place_of[self._index.treelets[rows]] >= 0
        return drawable

    def bytes_of(self, rows: Int64) -> int:
        """Bytes that the nodes int64[k], rows of `octree`, and all they stand on would take."""
        return self._bytes(self._standing_on(rows))

    def missing_bytes(self, rows: Int64) -> int:
        """Bytes of what the nodes int64[k], rows of `octree`, and all they stand on lack in the arena."""
        return self._bytes(self._missing(self._standing_on(rows)))

    def begin_picture(self) -> None:
        """From now on rows are used for another picture; those that neither it nor the one before uses go first."""
        self._stale_before, self._begun = self._begun, self._tick + 1

    def count_use(self, rows: Int64) -> None:
        """Note that resident nodes, rows of `octree`, are drawn with, which nobody asked `ensure` for."""
        with self._lock:
            self._touch(self._standing_on(rows), tick=False)

    def ensure(self, keys: Int64, abort: Abort | None = None, next_use: NextUse | None = None) -> Arena:
        """The arena with the nodes int64[k] resident, and whatever they stand on: their ancestors up to the root, and
        the bases of all their treelets.

        A node whose row is damaged counts as missing with everything below it, so that its ancestors draw there; a
        damaged base takes its whole treelet along. That is logged once per node. DamagedStoreError if that node is
        the octree's root. BudgetError if the set exceeds the budget. UnreachableError if a server fails.

        abort: asked now and then while rows are read; once it is true, reading is called off and Aborted raised.
        next_use: of rows of `octree` int64[k], when they will be needed, so that what is needed last makes room first;
        default: what was used least recently does.
        """
        with self._lock:
            wanted = self._standing_on(self.octree.index_of(keys))
            if self._bytes(wanted) > self.byte_budget:
                raise BudgetError(
                    f"memory budget: expected at least {format_bytes(self._bytes(wanted))} for {len(wanted.nodes)} "
                    f"nodes and {len(wanted.treelets)} bases, got {format_bytes(self.byte_budget)}"
                )
            missing = self._touch(wanted)
            if len(missing.nodes) or len(missing.treelets):
                self._make_room(self._bytes(missing), next_use)
                self._load(missing, abort)
                self._arena = None
            if self._arena is None:
                self._arena = self._linked()
            return self._arena

    def prefetch(self, *keys: Int64) -> None:
        """Read ahead what sets of nodes int64[k] will need, the first set first, coarse nodes before fine ones, as room
        for it comes free; returns at once. What was asked for before and is not among it is called off."""
        with self._lock:
            items: dict[Item, None] = {}
            for part in keys:
                missing = self._missing(self._standing_on(self.octree.index_of(part)))
                # coarse ones first: without them the fine ones cannot be drawn
                items.update((("base", int(row)), None) for row in missing.treelets)
                items.update((("node", int(row)), None) for row in missing.nodes)
            self._ahead.request(list(items))

    def close(self) -> None:
        """End the threads that read."""
        self._ahead.close()
        self._pool.shutdown(wait=True)

    def _bytes(self, rows: WorkingSet) -> int:
        return len(rows.nodes) * self.node_bytes + len(rows.treelets) * self.base_bytes

    def _standing_on(self, rows: Int64) -> WorkingSet:
        return working_set(self.octree, self._index, rows, self.dead)

    def _missing(self, wanted: WorkingSet) -> WorkingSet:
        nodes, treelets = wanted
        return WorkingSet(nodes[self._slot_of[nodes] < 0], treelets[self._place_of[treelets] < 0])

    def _touch(self, wanted: WorkingSet, *, tick: bool = True) -> WorkingSet:
        """Mark what is resident as used now, which pins it until the next tick; returns what is not resident."""
        self._tick += tick
        self._count_touched(wanted)
        slots, places = self._slot_of[wanted.nodes], self._place_of[wanted.treelets]
        self._slot_used[slots[slots >= 0]] = self._tick
        self._place_used[places[places >= 0]] = self._tick
        missing = self._missing(wanted)
        num_missing = len(missing.nodes) + len(missing.treelets)
        self.counters.misses += num_missing
        self.counters.hits += len(slots) + len(places) - num_missing
        return missing

    def _count_touched(self, wanted: WorkingSet) -> None:
        shape = self._shape
        new_nodes, new_bases = (~self._node_touched[wanted.nodes]).sum(), (~self._base_touched[wanted.treelets]).sum()
        self._node_touched[wanted.nodes] = True
        self._base_touched[wanted.treelets] = True
        row = 2 * shape.row_length + shape.occupancy_bytes
        self.counters.touched_bytes += int(new_nodes * row + new_bases * 2 * shape.base_length)

    def _admit(self, kind: Kind, row: int) -> int:
        """Give a node or a base its piece of memory, pinned; returns slot or place. Only this and `_drop` change what
        is resident."""
        if kind == "node":
            at = self._memory.slots.take()
            self._slot_of[row], self._row_at[at], self._slot_used[at] = at, row, self._tick
            self._charge(self.node_bytes)
        else:
            at = self._memory.places.take()
            self._place_of[row], self._treelet_at[at], self._place_used[at] = at, row, self._tick
            self._charge(self.base_bytes)
        return at

    def _drop(self, kind: Kind, row: int) -> None:
        """Take a node's or a base's memory back."""
        if kind == "node":
            at = int(self._slot_of[row])
            self._slot_of[row], self._row_at[at] = -1, -1
            self._memory.slots.release(at)
            self._charge(-self.node_bytes)
        else:
            at = int(self._place_of[row])
            self._place_of[row], self._treelet_at[at] = -1, -1
            self._memory.places.release(at)
            self._charge(-self.base_bytes)
        self._arena = None

    def _charge(self, num_bytes: int) -> None:
        self._total += num_bytes
        self._meter.add(num_bytes)

    def _make_room(self, num_bytes: int, next_use: NextUse | None) -> None:
        excess = self._total + num_bytes - self.byte_budget
        if excess <= 0:
            return
        for kind, row in self._needed_last(next_use):
            self._drop(kind, row)
            self.counters.evictions += 1
            excess -= self.node_bytes if kind == "node" else self.base_bytes
            if excess <= 0:
                return

    def _needed_last(self, next_use: NextUse | None) -> Iterator[Item]:
        slots = np.flatnonzero((self._row_at >= 0) & (self._slot_used < self._tick))
        places = np.flatnonzero((self._treelet_at >= 0) & (self._place_used < self._tick))
        rows, treelets = self._row_at[slots], self._treelet_at[places]
        used = np.concatenate([self._slot_used[slots], self._place_used[places]])
        level = np.concatenate([self.octree.levels[rows], self.octree.levels[self._row_of_root[treelets]]])
        later = None if next_use is None else next_use(np.concatenate([rows, self._row_of_root[treelets]]))
        for i in eviction_order(used, level, later, self._stale_before):
            yield ("node", int(rows[i])) if i < len(rows) else ("base", int(treelets[i - len(rows)]))

    def _load(self, missing: WorkingSet, abort: Abort | None) -> None:
        admitted: list[Item] = [("node", int(row)) for row in missing.nodes]
        admitted += [("base", int(row)) for row in missing.treelets]
        fetch = [Fetch() for _ in admitted]
        pairs = zip(admitted, fetch, strict=True)
        jobs = [self._pool.submit(self._fill, item, self._admit(*item), own) for item, own in pairs]
        try:
            finish(jobs, abort)
        except BaseException:  # a lost network, an interrupt: nobody knows which rows were filled
            for job, own in zip(jobs, fetch, strict=True):
                job.cancel()
                own.cancel()
            wait(jobs)  # before their slots are given to others
            for kind, row in admitted:
                self._drop(kind, row)
            raise
        outcomes = [(kind, row, job.result()) for (kind, row), job in zip(admitted, jobs, strict=True)]
        damaged = [(kind, row, error) for kind, row, error in outcomes if error is not None]
        if damaged:
            self._bury(damaged, admitted)

    def _fill(self, item: Item, at: int, fetch: Fetch) -> DamagedNodeError | None:
        """Put a row where it belongs; a damaged one is returned as its error."""
        try:
            rows, waited = self._ahead.take(item)
            with self._counting:
                self.counters.ready += rows is not None and not waited
                self.counters.late += rows is not None and waited
            if rows is None:
                self._meter.add(self.read_bytes)
                try:
                    with fetch.active():
                        rows = self._read(item)
                finally:
                    self._meter.add(-self.read_bytes)
        except DamagedNodeError as error:
            return error
        if item[0] == "node":
            self._memory.write_node(at, *rows)
        else:
            self._memory.write_base(at, *rows)
        return None

    def _read(self, item: Item) -> tuple[AnyArray, ...]:
        """What is stored of a node (table, occupancy) or of a base (grid)."""
        kind, row = item
        rows: tuple[AnyArray, ...]
        if kind == "base":
            rows = (self._store.read_base(int(self._index.base_slots[row])),)
        else:
            slot = int(self._index.slots[row])
            rows = self._store.read_node(slot), self._store.read_occupancy(slot)
        with self._counting:
            self.counters.bytes_read += self._bytes_ahead(item)
        return rows

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
            if not self.dead[top]:
                node = NodeId.from_key(int(self._index.keys[top]))
                self._damaged.append(str(node))
                _log.warning("node %s is damaged, coarser nodes are drawn there: %s", node, error)
            self.dead[top] = True
        for level in range(1, self.octree.depth + 1):
            rows = np.flatnonzero(self.octree.levels == level)
            self.dead[rows] |= self.dead[self.octree.parents[rows]]
        for row in np.flatnonzero(self.dead & (self._slot_of >= 0)).tolist():
            self._drop("node", row)
        for treelet in np.flatnonzero(self.dead[self._row_of_root] & (self._place_of >= 0)).tolist():
            self._drop("base", treelet)

    def _linked(self) -> Arena:
        index = self._index
        row = np.maximum(self._row_at, 0)
        place = self._place_of[index.treelets[row]]
        # a node whose base is not resident cannot be drawn, hence must not be reached
        keys = np.where((self._row_at >= 0) & (place >= 0), index.keys[row], -1)
        roots = index.root_keys[np.maximum(self._treelet_at, 0)]
        return self._memory.arena(keys, np.maximum(place, 0), roots, index.lambda_max[row])
