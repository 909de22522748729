"""The three arrays of rows (`params`, `occupancy`, `base`): one chunk, one object per row."""

import math
import threading
from collections.abc import Collection, Sequence
from typing import Any, Literal

import numpy as np
import zarr

from infnerf_tiles.arrays import AnyArray
from infnerf_tiles.errors import DamagedNodeError, StoreError
from infnerf_tiles.store.array_layout import DECODE_ERRORS, ArrayLayout, assume_array, create_array, open_array
from infnerf_tiles.store.guarded import GuardedStore
from infnerf_tiles.store.schema import MAX_SLOTS, MAX_TREELETS, SceneHeader

RowKind = Literal["params", "occupancy", "base"]
ROW_KINDS: tuple[RowKind, ...] = ("params", "occupancy", "base")


class RowArrays:
    """Reads and writes rows; opens each array once and again when a slot lies beyond the length it knows.

    The metadata of `assumed` kinds is not read but taken to be what the header implies: it follows from the header, so
    rows can be read when it is lost.
    """

    def __init__(self, store: GuardedStore, header: SceneHeader, assumed: Collection[str] = ()) -> None:
        self._store = store
        self._assumed = assumed
        self._layouts: dict[str, ArrayLayout] = {}
        for kind in ROW_KINDS:
            schema = header.rows[kind]
            # `base` keeps its grid shape for other readers; a node's row is flat so that tensors can be added to it
            shape = schema.tensors[0].shape if kind == "base" else (schema.row_length,)
            capacity = header.treelet_capacity if kind == "base" else header.capacity
            self._layouts[kind] = ArrayLayout(
                path=kind, dtype=schema.dtype, shape=(capacity, *shape), chunk=(1, *shape)
            )
        self._open: dict[str, zarr.Array[Any]] = {}
        self._lock = threading.Lock()

    def write_metadata(self, kinds: Sequence[str] = ROW_KINDS) -> None:
        """Create the arrays, or write their metadata anew."""
        for kind in kinds:
            create_array(self._store, self._layouts[kind])

    def check_metadata(self, kind: RowKind) -> None:
        """DamagedStoreError unless the array's metadata is what it should be."""
        open_array(self._store, self._layouts[kind], may_grow=True)

    def chunk_key(self, kind: RowKind, slot: int) -> str:
        """Key of a row's object."""
        return f"{kind}/c.{slot}" + ".0" * (len(self._layouts[kind].shape) - 1)

    def write(self, kind: RowKind, slot: int, row: AnyArray) -> None:
        """Replace one row. ValueError for another dtype or shape, or a slot beyond the capacity."""
        layout = self._layouts[kind]
        if row.dtype != np.dtype(layout.dtype) or row.shape != layout.shape[1:]:
            raise ValueError(
                f"{kind} row: expected {layout.dtype}{list(layout.shape[1:])}, got {row.dtype}{list(row.shape)}"
            )
        array = self._array(kind, slot)
        if not 0 <= slot < array.shape[0]:
            raise ValueError(f"{kind} slot: expected 0 to {array.shape[0] - 1}, got {slot}; allocate slots first")
        array[slot] = row

    def read(self, kind: RowKind, slot: int) -> AnyArray:
        """One row; DamagedNodeError if it is missing or damaged, or the slot does not exist."""
        try:
            array = self._array(kind, slot)
            if not 0 <= slot < array.shape[0]:
                raise ValueError(f"it lies outside the {array.shape[0]} that exist")
            return np.asarray(array[slot])
        except StoreError:  # the array as a whole
            raise
        except DECODE_ERRORS as error:
            raise DamagedNodeError(
                f"scene {self._store.name}: {kind} slot {slot} cannot be used ({error}); run 'verify --repair' and "
                "then 'train' to make it again"
            ) from error

    def grow(self, num_slots: int, num_treelet_slots: int, header: SceneHeader) -> SceneHeader:
        """Make room for that many slots. Returns the header with the capacities that result.

        Growing replaces one metadata document per array and touches no row, so readers need not notice.
        """
        capacity = _grown(header.capacity, num_slots, MAX_SLOTS)
        treelet_capacity = _grown(header.treelet_capacity, num_treelet_slots, MAX_TREELETS)
        for kind, layout in self._layouts.items():
            length = treelet_capacity if kind == "base" else capacity
            if length > layout.shape[0]:
                self._layouts[kind] = layout.with_rows(length)
            if length > (header.treelet_capacity if kind == "base" else header.capacity):
                create_array(self._store, self._layouts[kind])
        return header.with_capacity(capacity, treelet_capacity)

    def _array(self, kind: RowKind, slot: int) -> "zarr.Array[Any]":
        with self._lock:
            array = self._open.get(kind)
            if array is None or slot >= array.shape[0]:
                layout = self._layouts[kind]
                assumed = kind in self._assumed
                array = assume_array(self._store, layout) if assumed else open_array(self._store, layout, may_grow=True)
                self._open[kind] = array
            return array


def _grown(capacity: int, needed: int, most: int) -> int:
    """At least `needed`; half as much again when growing, so that it is seldom."""
    return capacity if needed <= capacity else min(most, max(needed, math.ceil(capacity * 1.5)))
