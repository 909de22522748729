"""The three arrays of rows (`params`, `occupancy`, `base`): one chunk, one object per row."""

import math
import threading
from collections.abc import Collection, Sequence
from typing import Any, Literal

import numpy as np
import zarr

from infnerf_tiles.arrays import AnyArray
from infnerf_tiles.errors import DamagedNodeError
from infnerf_tiles.store.array_layout import ArrayLayout, check_array, create_array, read_chunk, writable_array
from infnerf_tiles.store.chunk_codec import ChunkError
from infnerf_tiles.store.guarded import GuardedStore
from infnerf_tiles.store.schema import MAX_SLOTS, MAX_TREELETS, SceneHeader
from infnerf_tiles.store.shards import ShardReader

RowKind = Literal["params", "occupancy", "base"]
ROW_KINDS: tuple[RowKind, ...] = ("params", "occupancy", "base")


class RowArrays:
    """Reads and writes rows; checks each array's metadata once, and again when a slot lies beyond the length it knows.

    The metadata of `assumed` kinds is not read but taken to be what the header implies: it follows from the header, so
    rows can be read when it is lost.
    """

    def __init__(self, store: GuardedStore, header: SceneHeader, assumed: Collection[str] = ()) -> None:
        self._store = store
        self._layouts = {kind: _row_layout(kind, header) for kind in ROW_KINDS}
        self._shards = {kind: ShardReader(store) for kind in ROW_KINDS}
        self._checked: set[str] = set(assumed)
        self._writable: dict[str, zarr.Array[Any]] = {}
        self._lock = threading.Lock()

    def write_metadata(self, header: SceneHeader, kinds: Sequence[RowKind] = ROW_KINDS) -> None:
        """Create the arrays, or write their metadata anew, with the header's capacities."""
        for kind in kinds:
            create_array(self._store, _row_layout(kind, header))

    def check_metadata(self, kind: RowKind) -> None:
        """DamagedStoreError unless the array's metadata is what it should be."""
        check_array(self._store, self._layouts[kind], may_grow=True)

    def chunk_key(self, kind: RowKind, slot: int) -> str:
        """Key of the object that holds a row: its own, or a shard."""
        layout = self._layouts[kind]
        return layout.chunk_key(slot // layout.shard, *(0 for _ in layout.shape[1:]))

    def write(self, kind: RowKind, slot: int, row: AnyArray) -> None:
        """Replace one row. ValueError for another dtype or shape, or a slot beyond the capacity."""
        layout = self._layout(kind, slot)
        if row.dtype != np.dtype(layout.dtype) or row.shape != layout.shape[1:]:
            raise ValueError(
                f"{kind} row: expected {layout.dtype}{list(layout.shape[1:])}, got {row.dtype}{list(row.shape)}"
            )
        if not 0 <= slot < layout.shape[0]:
            raise ValueError(f"{kind} slot: expected 0 to {layout.shape[0] - 1}, got {slot}; allocate slots first")
        with self._lock:
            array = self._writable.get(kind)
            if array is None or array.shape != layout.shape:
                array = self._writable[kind] = writable_array(self._store, layout)
        array[slot] = row

    def read(self, kind: RowKind, slot: int) -> AnyArray:
        """One row, new and writable; DamagedNodeError if it is missing or damaged, or the slot does not exist."""
        layout = self._layout(kind, slot)
        try:
            if not 0 <= slot < layout.shape[0]:
                raise ChunkError(f"it lies outside the {layout.shape[0]} that exist")
            if layout.shard > 1:
                return self._shards[kind].read(layout, slot).reshape(layout.shape[1:])
            chunk = read_chunk(self._store, layout, slot, *(0 for _ in layout.shape[1:]))
            return chunk.reshape(layout.shape[1:])
        except ChunkError as error:
            raise DamagedNodeError(
                f"scene {self._store.name}: {kind} slot {slot} cannot be used ({error}); run 'verify --repair' and "
                "then 'train' to make it again"
            ) from error

    def grow(self, num_slots: int, num_treelet_slots: int, header: SceneHeader) -> SceneHeader:
        """Make room for that many slots in the arrays, which are as long as `header` says or longer.

        Returns the header with the capacities that result. Growing replaces one metadata document per array and touches
        no row, so readers need not notice; if it is interrupted, some arrays are longer than the root document says.
        """
        capacity = _grown(header.capacity, num_slots, MAX_SLOTS)
        treelet_capacity = _grown(header.treelet_capacity, num_treelet_slots, MAX_TREELETS)
        grown = header.with_capacity(capacity, treelet_capacity)
        kinds = (k for k in ROW_KINDS if _row_layout(k, grown).shape != _row_layout(k, header).shape)
        self.write_metadata(grown, tuple(kinds))
        return grown

    def _layout(self, kind: RowKind, slot: int) -> ArrayLayout:
        """The layout of an array: checked when first used, and again for a slot beyond the length last seen."""
        with self._lock:
            layout = self._layouts[kind]
            if kind not in self._checked or slot >= layout.shape[0]:
                layout = self._layouts[kind] = check_array(self._store, layout, may_grow=True)
                self._checked.add(kind)
            return layout


def _row_layout(kind: RowKind, header: SceneHeader) -> ArrayLayout:
    schema = header.rows[kind]
    # `base` keeps its grid shape for other readers; a node's row is flat so that tensors can be added to it
    shape = schema.tensors[0].shape if kind == "base" else (schema.row_length,)
    capacity = header.treelet_capacity if kind == "base" else header.capacity
    return ArrayLayout(
        path=kind, dtype=schema.dtype, shape=(capacity, *shape), chunk=(1, *shape), shard=header.shard_rows
    )


def _grown(capacity: int, needed: int, most: int) -> int:
    """At least `needed`; half as much again when growing, so that it is seldom."""
    return capacity if needed <= capacity else min(most, max(needed, math.ceil(capacity * 1.5)))
