"""The device tier's memory: slots for nodes, places for treelet bases, and the arena that kernels see of them."""

import numpy as np
import torch
from torch import Tensor

from infnerf_tiles.arrays import AnyArray, Float32, Int32, Int64, UInt8
from infnerf_tiles.errors import BudgetError
from infnerf_tiles.field.linking import Links, link
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.kernels.arena import Arena
from infnerf_tiles.kernels.blocks import occupied_blocks
from infnerf_tiles.rendering.accounts import base_stride, row_costs
from infnerf_tiles.rendering.slot_memory import SlotMemory, SlotNumbers
from infnerf_tiles.units import format_bytes
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
        self._blocks: UInt8 = np.zeros((num_slots, shape.block_bytes), np.uint8)
        self._own_occupied: UInt8 = np.zeros((num_slots, 1), np.uint8)

    def write_node(self, slot: int, table: AnyArray, occupancy: UInt8) -> None:
        """Fill a slot: float16[T * F] and uint8[B]. Threads may fill different slots at the same time."""
        self._tables[slot] = table
        self._occupancy[slot] = occupancy
        self._blocks[slot] = _blocks_of(occupancy, self._shape)
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
        return _linked(
            shape, link(keys, places, roots), lambda_max, self._own_occupied, self._stride,
            tables=torch.from_numpy(self._tables.reshape(-1, shape.table_size, shape.features)),
            dense=torch.from_numpy(self._bases.reshape(-1, shape.features)),
            occupancy=torch.from_numpy(self._occupancy),
            blocks=torch.from_numpy(self._blocks),
        )  # fmt: skip


class DeviceArenaMemory:
    """The same in the memory of a GPU, features in float16 as they are stored. All of it is taken at once."""

    def __init__(self, shape: FieldShape, num_slots: int, num_places: int, device: torch.device) -> None:
        """BudgetError if the device has not that much memory left."""
        self._shape = shape
        self._stride = base_stride(shape)
        self.slots = SlotNumbers(num_slots)
        self.places = SlotNumbers(num_places)
        table = (num_slots, shape.table_size, shape.features)
        half = torch.float16
        try:
            # zeros: a lane that has nothing to draw may still look at a row
            self._tables = torch.zeros(table, dtype=half, device=device)
            self._bases = torch.zeros((num_places * self._stride, shape.features), dtype=half, device=device)
            self._occupancy = torch.zeros((num_slots, shape.occupancy_bytes), dtype=torch.uint8, device=device)
            self._blocks = torch.zeros((num_slots, shape.block_bytes), dtype=torch.uint8, device=device)
        except torch.cuda.OutOfMemoryError as error:
            free, total = torch.cuda.mem_get_info(device)
            costs = row_costs(shape, half=True)
            wanted = num_slots * costs.node + num_places * costs.base
            raise BudgetError(
                f"memory budget: expected {format_bytes(wanted)} for nodes in the memory of {device}, of which "
                f"{format_bytes(free)} of {format_bytes(total)} are free; give a smaller memory budget"
            ) from error
        self._own_occupied: UInt8 = np.zeros((num_slots, 1), np.uint8)

    def write_node(self, slot: int, table: AnyArray, occupancy: UInt8) -> None:
        """Fill a slot: float16[T * F] and uint8[B]. Threads may fill different slots at the same time."""
        _put(self._tables[slot], table)
        _put(self._occupancy[slot], occupancy)
        _put(self._blocks[slot], _blocks_of(occupancy, self._shape))
        self._own_occupied[slot] = occupancy.any()

    def write_base(self, place: int, grid: AnyArray) -> None:
        """Fill a place: float16[V, V, V, F]."""
        flat = grid.reshape(-1, self._shape.features)
        first = place * self._stride
        _put(self._bases[first : first + len(flat)], flat)

    def arena(self, keys: Int64, places: Int32, roots: Int64, lambda_max: Float32) -> Arena:
        """The arena of what is resident; arguments as of `ArenaMemory.arena`."""
        return _linked(
            self._shape, link(keys, places, roots), lambda_max, self._own_occupied, self._stride,
            tables=self._tables, dense=self._bases, occupancy=self._occupancy, blocks=self._blocks,
        )  # fmt: skip


def in_half(device: torch.device | None) -> bool:
    """Whether resident features are float16 on a device (None: the CPU)."""
    return device is not None and device.type != "cpu"


def memory_for(
    device: torch.device | None, shape: FieldShape, num_slots: int, num_places: int
) -> ArenaMemory | DeviceArenaMemory:
    """Memory on a device (None: the CPU). BudgetError if there is not that much."""
    if device is None or not in_half(device):
        return ArenaMemory(shape, num_slots, num_places)
    return DeviceArenaMemory(shape, num_slots, num_places, device)


def _blocks_of(occupancy: UInt8, shape: FieldShape) -> UInt8:
    """Bits of one node's blocks."""
    row = torch.from_numpy(np.require(occupancy, requirements=["C", "W"]))
    found: UInt8 = occupied_blocks(row[None], shape.occupancy_cells)[0].numpy()
    return found


def _put(target: Tensor, values: AnyArray) -> None:
    target.copy_(torch.from_numpy(np.require(values, requirements=["C", "W"])).view(target.shape))


def _linked(
    shape: FieldShape,
    links: Links,
    lambda_max: Float32,
    own_occupied: UInt8,
    stride: int,
    *,
    tables: Tensor,
    dense: Tensor,
    occupancy: Tensor,
    blocks: Tensor,
) -> Arena:
    device, num = tables.device, len(links.top_level)

    def put(values: AnyArray) -> Tensor:
        return torch.from_numpy(values).to(device)

    return Arena(
        cells=shape.cells,
        base_cells=shape.base_cells,
        occupancy_cells=shape.occupancy_cells,
        root=links.root,
        tables=tables,
        dense=dense,
        dense_offset=torch.arange(num, dtype=torch.int64, device=device) * stride,
        dense_grids=torch.ones(num, dtype=torch.int32, device=device),
        level=put(links.level),
        parent=put(links.parent),
        children=put(links.children),
        treelet=put(links.treelet),
        lambda_max=put(lambda_max),
        occupancy=occupancy,
        blocks=blocks,
        any_occupied=put(any_occupied(own_occupied, links.level, links.children)),
        top_level=put(links.top_level),
        top_xyz=put(links.top_xyz),
        above=put(links.above),
    )
