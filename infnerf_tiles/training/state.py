"""Everything that changes while one treelet trains: own nodes, frozen surroundings, gradients and moments."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infnerf_tiles.arrays import Bool, Float16, Float32, Int32, Int64, UInt8
from infnerf_tiles.errors import NonFiniteError
from infnerf_tiles.field.linking import link
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.geometry.node_id import NodeId, RootCube, child_keys, decode_keys
from infnerf_tiles.kernels.arena import VERTEX_BLOCK, Arena, MarchSettings
from infnerf_tiles.kernels.cpu.encode import Gradients
from infnerf_tiles.volume.occupancy import (
    any_occupied,
    dilate_cells,
    neighbour_slots,
    octant,
    pack_cells,
    refined,
    unpack_cells,
)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The scene's constants that a trainer needs."""

    root: RootCube
    march: MarchSettings
    max_own_level: int
    """Deepest level that this training's nodes may have."""
    can_go_below: bool
    """Whether a finer band exists below max_own_level, so that evidence there asks for its treelets."""


@dataclass(frozen=True, kw_only=True)
class ResidentNodes:
    """Committed nodes of other treelets, kept frozen around a training."""

    keys: Int64
    """int64 [n]."""
    treelet: Int32
    """int32 [n], row in `top_keys`."""
    tables: Float16
    """float16 [n, T * F]."""
    occupancy: UInt8
    """uint8 [n, bytes]."""
    lambda_max: Float32
    """float32 [n]."""
    top_keys: Int64
    """int64 [r], root of each treelet."""
    bases: Float16
    """float16 [r, base_length]."""

    @classmethod
    def none(cls, shape: FieldShape) -> "ResidentNodes":
        """No surroundings: the treelet holds the octree's root."""
        return cls(
            keys=np.empty(0, np.int64),
            treelet=np.empty(0, np.int32),
            tables=np.empty((0, shape.row_length), np.float16),
            occupancy=np.empty((0, shape.occupancy_bytes), np.uint8),
            lambda_max=np.empty(0, np.float32),
            top_keys=np.empty(0, np.int64),
            bases=np.empty((0, shape.base_length), np.float16),
        )


class TrainingState:
    """Own nodes in slots 0 .. capacity-1 (treelet row 0), frozen nodes behind them."""

    def __init__(self, shape: FieldShape, top: NodeId, own_keys: Int64, capacity: int, frozen: ResidentNodes):
        if capacity < len(own_keys):
            raise ValueError(f"capacity {capacity} is below the {len(own_keys)} nodes of {top}")
        self.shape, self.top, self.capacity = shape, top, capacity
        total = capacity + len(frozen.keys)
        self.keys = np.full(total, -1, np.int64)
        self.keys[: len(own_keys)] = own_keys
        self.keys[capacity:] = frozen.keys
        self.num_own = len(own_keys)
        self.treelet = np.zeros(total, np.int32)
        self.treelet[capacity:] = frozen.treelet + 1
        self.top_keys = np.concatenate([np.array([top.key], np.int64), frozen.top_keys])
        f = shape.features
        self.tables = torch.zeros((total, shape.table_size, f))
        self.tables[capacity:] = torch.from_numpy(frozen.tables.astype(np.float32)).view(-1, shape.table_size, f)
        own_rows, base_rows = shape.training_dense_rows, shape.base_rows
        self.dense = torch.zeros((own_rows + len(frozen.top_keys) * base_rows, f))
        self.dense[own_rows:] = torch.from_numpy(frozen.bases.astype(np.float32)).view(-1, f)
        self.dense_offset = torch.tensor([0] + [own_rows + r * base_rows for r in range(len(frozen.top_keys))])
        self.dense_grids = torch.ones(len(self.top_keys), dtype=torch.int32)
        self.dense_grids[0] = shape.num_corrections
        self.lambda_max = torch.full((total,), 1e9)
        self.lambda_max[capacity:] = torch.from_numpy(frozen.lambda_max)
        self.occupancy = torch.zeros((total, shape.occupancy_bytes), dtype=torch.uint8)
        self.occupancy[capacity:] = torch.from_numpy(frozen.occupancy)
        o = shape.occupancy_cells
        self.ema = np.zeros((capacity, o, o, o), np.float32)
        """Decayed maximum of optical depth per step, cell by cell (z, y, x)."""
        self.prior = np.float32(0.0)
        """What an occupied cell counts before its density was looked at; refreshes let it decay."""
        self.relink()

    def relink(self) -> None:
        """Rebuild the arena's links after nodes came or went."""
        links = link(self.keys, self.treelet, self.top_keys)
        self.level = links.level
        self.neighbours = neighbour_slots(self.keys[: self.num_own])
        """int32 [num_own, 3, 2]: own node across each face, or -1."""
        self.arena = Arena(
            cells=self.shape.cells,
            base_cells=self.shape.base_cells,
            occupancy_cells=self.shape.occupancy_cells,
            root=links.root,
            tables=self.tables,
            dense=self.dense,
            dense_offset=self.dense_offset,
            dense_grids=self.dense_grids,
            level=torch.from_numpy(links.level),
            parent=torch.from_numpy(links.parent),
            children=torch.from_numpy(links.children),
            treelet=torch.from_numpy(links.treelet),
            lambda_max=self.lambda_max,
            occupancy=self.occupancy,
            any_occupied=torch.from_numpy(any_occupied(self.occupancy.numpy(), links.level, links.children)),
            top_level=torch.from_numpy(links.top_level),
            top_xyz=torch.from_numpy(links.top_xyz),
            above=torch.from_numpy(links.above),
        )

    def start_occupancy(self, cells: Bool, prior: float) -> None:
        """Begin with these cells, bool [num_own, O, O, O], each counting `prior` (optical depth per step)."""
        self.prior = np.float32(prior)
        self.ema[: self.num_own] = cells * self.prior
        self.set_occupied(cells)

    def set_occupied(self, cells: Bool) -> None:
        """Set the bits of the own nodes from bool [num_own, O, O, O] and refresh the emptiness flags."""
        self.occupancy[: self.num_own] = torch.from_numpy(pack_cells(cells))
        self.arena.any_occupied = torch.from_numpy(
            any_occupied(self.occupancy.numpy(), self.level, self.arena.children.numpy())
        )

    def occupied(self) -> Bool:
        """Cells of the own nodes, bool [num_own, O, O, O] (z, y, x)."""
        return unpack_cells(self.occupancy[: self.num_own].numpy(), self.shape.occupancy_cells)

    def check_finite(self, step: int) -> None:
        """NonFiniteError if a feature is NaN or infinite, which a finite loss can still hide."""
        rows = self.shape.training_dense_rows
        for name, values in (("table", self.tables[: self.num_own]), ("base", self.dense[:rows])):
            if not bool(torch.isfinite(values).all()):
                raise NonFiniteError(
                    f"treelet {self.top}: a {name} is not finite after step {step}; the last good state is kept. "
                    "Lower training.lr"
                )

    def local_position(self, slots: Tensor, inside: Tensor) -> Tensor:
        """Positions [M, 3] in the treelet's root cube of points `inside` [M, 3] in [0, 1) of own nodes."""
        levels, xyz = decode_keys(self.keys[slots.numpy()])
        height = levels.astype(np.int64) - self.top.level
        corner = xyz - (np.array([self.top.x, self.top.y, self.top.z]) << height[:, None])
        scale = torch.from_numpy(np.exp2(-height).astype(np.float32))[:, None]
        low = torch.from_numpy(corner.astype(np.float32))
        # the sum may round up to the node's far face, where its neighbour begins
        upper = torch.nextafter(low + 1.0, torch.zeros(()))
        return (torch.minimum(low + inside, upper) * scale).contiguous()

    def add_children(self, slots: Int64, octants: Int64, max_level: int) -> int:
        """Give own nodes new children where they have none; as many as there are free slots. Returns how many.

        A child starts from the parent's occupancy in its octant, dilated by one of its cells, and an all-zero table.
        """
        level = self.level[slots]
        fresh = (level < max_level) & (self.arena.children.numpy()[slots, octants] < 0)
        slots, octants = slots[fresh], octants[fresh]
        room = min(len(slots), self.capacity - self.num_own)
        slots, octants = slots[:room], octants[:room]
        if not room:
            return 0
        new = np.arange(self.num_own, self.num_own + room)
        self.keys[new] = child_keys(self.keys[slots])[np.arange(room), octants]
        cells = dilate_cells(self.occupied(), self.neighbours)
        for k in range(room):
            z, y, x = octant(int(octants[k]), self.shape.occupancy_cells)
            child = refined(cells[slots[k] : slots[k] + 1, z, y, x])[0]
            self.occupancy[int(new[k])] = torch.from_numpy(pack_cells(child[None])[0])
            self.ema[new[k]] = child.astype(np.float32) * self.prior
        self.num_own += room
        self.relink()
        return room


class Moments:
    """Gradients and Adam moments of the own nodes and dense grids."""

    def __init__(self, state: TrainingState, max_height: int):
        shape = state.shape
        self.gradients = Gradients(
            state.capacity,
            shape.table_size,
            shape.training_dense_rows,
            shape.features,
            max_height,
            shape.num_corrections,
        )
        self.first_tables = torch.zeros_like(self.gradients.tables)
        self.second_tables = torch.zeros_like(self.gradients.tables)
        self.first_dense = torch.zeros_like(self.gradients.dense)
        self.second_dense = torch.zeros_like(self.gradients.dense)

    def groups(self, state: TrainingState) -> list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
        """(value, gradient, first, second, marks) of tables and dense grids as rows of whole vertex blocks."""
        width = VERTEX_BLOCK * state.shape.features
        g = self.gradients
        rows = state.shape.training_dense_rows
        return [
            (
                state.tables[: state.capacity].view(-1, width),
                g.tables.view(-1, width),
                self.first_tables.view(-1, width),
                self.second_tables.view(-1, width),
                g.mark_tables.view(-1),
            ),
            (
                state.dense[:rows].view(-1, width),
                g.dense.view(-1, width),
                self.first_dense.view(-1, width),
                self.second_dense.view(-1, width),
                g.mark_dense.view(-1),
            ),
        ]
