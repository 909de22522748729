"""The device tier's memory: slots for nodes, places for treelet bases, and the arena that kernels see of them."""

import numpy as np
import torch

from infnerf_tiles.arrays import AnyArray, Float32, Int32, Int64, UInt8
from infnerf_tiles.field.linking import link
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.kernels.arena import Arena
from infnerf_tiles.rendering.accounts import base_stride
from infnerf_tiles.rendering.slot_memory import SlotMemory
from infnerf_tiles.volume.occupancy import any_occupied


class ArenaMemory:
    """Room for `num_slots` nodes and `num_places` bases, of which only what is in use costs memory."""

    def __init__(self, shape: FieldShape, num_slots: int, num_places: int) -> None:
        """BudgetError if the address space cannot be had."""
        self._shape = shape
        self._stride = base_stride(shape)
        self.slots = SlotMemory(num_slots, 4 * shape.row_length)
        self.places = SlotMemory(num_places, 4 * self._stride * shape.features)
        self._tables: Float32 = self.slots.array(np.float32, shape.row_length)
        self._bases: Float32 = self.places.array(np.float32, self._stride, shape.features)
        self._occupancy: UInt8 = np.zeros((num_slots, shape.occupancy_bytes), np.uint8)
        self._own_occupied: UInt8 = np.zeros((num_slots, 1), np.uint8)

    def write_node(self, slot: int, table: AnyArray, occupancy: UInt8) -> None:
        """Fill a slot: float16[T * F] and uint8[B]. Threads may fill different slots at the same time."""
        self._tables[slot] = table
        self._occupancy[slot] = occupancy
        self._own_occupied[slot] = occupancy.any()

    def write_base(self, place: int, grid: AnyArray) -> None:
        """Fill a place: float16[V, V, V, F]."""
        flat = grid.reshape(-1, self._shape.features)
        self._bases[place, : len(flat)] = flat

    def arena(self, keys: Int64, places: Int32, roots: Int64, lambda_max: Float32) -> Arena:
        """The arena of what is resident.

        keys: int64[S], node in each slot, -1 for none; places: int32[S], where the base of its treelet is; roots:
        int64[R], key of the treelet root in each place; lambda_max: float32[S].
        """
        shape = self._shape
        links = link(keys, places, roots)
        return Arena(
            cells=shape.cells,
            base_cells=shape.base_cells,
            occupancy_cells=shape.occupancy_cells,
            root=links.root,
            tables=torch.from_numpy(self._tables.reshape(-1, shape.table_size, shape.features)),
            dense=torch.from_numpy(self._bases.reshape(-1, shape.features)),
            dense_offset=torch.arange(self.places.slots, dtype=torch.int64) * self._stride,
            dense_grids=torch.ones(self.places.slots, dtype=torch.int32),
            level=torch.from_numpy(links.level),
            parent=torch.from_numpy(links.parent),
            children=torch.from_numpy(links.children),
            treelet=torch.from_numpy(links.treelet),
            lambda_max=torch.from_numpy(lambda_max),
            occupancy=torch.from_numpy(self._occupancy),
            any_occupied=torch.from_numpy(any_occupied(self._own_occupied, links.level, links.children)),
            top_level=torch.from_numpy(links.top_level),
            top_xyz=torch.from_numpy(links.top_xyz),
            above=torch.from_numpy(links.above),
        )
