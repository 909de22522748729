"""Everything that changes while one treelet trains: own nodes, frozen surroundings, gradients and moments.

Legend
    masters   float32 values that learn: `TrainingState.tables` and `.dense`
    copies    what the kernels read, `Arena.tables` and `.dense`; on the CPU the masters themselves
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infnerf_tiles.arrays import AnyArray, Bool, Float16, Float32, Int32, Int64, UInt8
from infnerf_tiles.errors import NonFiniteError
from infnerf_tiles.field.linking import link
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.geometry.node_id import NodeId, RootCube, child_keys, decode_keys
from infnerf_tiles.kernels import for_device
from infnerf_tiles.kernels.arena import VERTEX_BLOCK, Arena, Gradients, MarchSettings, reserved
from infnerf_tiles.kernels.blocks import occupied_blocks
from infnerf_tiles.volume.cells import any_occupied_below
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
    """Own nodes in slots 0 .. capacity-1 (treelet row 0), frozen nodes behind them.

    Its tensors have their sizes for good and are only written in place, so that a captured step may hold on to them.
    """

    def __init__(
        self,
        shape: FieldShape,
        top: NodeId,
        own_keys: Int64,
        capacity: int,
        frozen: ResidentNodes,
        *,
        device: torch.device | None = None,
        copies: bool | None = None,
    ):
        """Put the nodes on the device.

        Args:
            copies: whether kernels read copies of the masters, in float16 on CUDA, with the treelet's dense grids
                folded into one. None: on CUDA. Whoever writes to masters calls `publish` then.
        """
        if capacity < len(own_keys):
            raise ValueError(f"capacity {capacity} is below the {len(own_keys)} nodes of {top}")
        self.shape, self.top, self.capacity = shape, top, capacity
        self.device = torch.device("cpu") if device is None else device
        self.copies = self.device.type == "cuda" if copies is None else copies
        total = capacity + len(frozen.keys)
        self.keys = np.full(total, -1, np.int64)
        self.keys[: len(own_keys)] = own_keys
        self.keys[capacity:] = frozen.keys
        self.num_own = len(own_keys)
        self.treelet = np.zeros(total, np.int32)
        self.treelet[capacity:] = frozen.treelet + 1
        self.top_keys = np.concatenate([np.array([top.key], np.int64), frozen.top_keys])
        self.level: Int32 = np.full(total, -1, np.int32)
        f = shape.features
        self.tables = reserved(total, shape.table_size, f, device=self.device)
        """float32 [S, T, F], masters."""
        self._put(self.tables[capacity:], frozen.tables)
        own_rows, base_rows = shape.training_dense_rows, shape.base_rows
        self.dense = torch.zeros((own_rows + len(frozen.top_keys) * base_rows, f), device=self.device)
        """float32 [D, F], masters: the own treelet's nested grids, then the others' bases."""
        self._put(self.dense[own_rows:], frozen.bases)
        self.dense_grids = torch.ones(len(self.top_keys), dtype=torch.int32, device=self.device)
        if not self.copies:
            self.dense_grids[0] = shape.num_corrections
        o = shape.occupancy_cells
        self.ema = reserved(capacity, o, o, o, device=self.device)
        """float32 [capacity, O, O, O] (z, y, x): decayed maximum of optical depth per step, cell by cell."""
        self.prior = np.float32(0.0)
        """What an occupied cell counts before its density was looked at; refreshes let it decay."""
        self.corner = torch.zeros((total, 3), device=self.device)
        """float32 [S, 3]: a node's lower corner in its treelet's root cube, in edges of the node."""
        self.edge = torch.ones(total, device=self.device)
        """float32 [S]: a node's edge, in edges of its treelet's root cube."""
        self.neighbours = torch.empty((0, 3, 2), dtype=torch.int32, device=self.device)
        """int32 [num_own, 3, 2]: own node across each face (axis; low, high side), or -1."""
        self.own_count = torch.zeros(1, dtype=torch.int64, device=self.device)
        """int64 [1]: own nodes."""
        self.arena = self._new_arena(frozen)
        self.relink()
        self.publish()

    def _put(self, target: Tensor, values: AnyArray) -> None:
        target.copy_(torch.from_numpy(np.require(values, requirements=["C", "W"])).view(target.shape))

    def _new_arena(self, frozen: ResidentNodes) -> Arena:
        """Buffers for everything; `relink` fills in the links."""
        shape, total, trees = self.shape, len(self.keys), len(self.top_keys)
        own_rows, base_rows = shape.training_dense_rows, shape.base_rows
        half = torch.float16 if self.device.type == "cuda" else torch.float32

        def new(*size: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=self.device)

        lambda_max = torch.full((total,), 1e9, device=self.device)
        self._put(lambda_max[self.capacity :], frozen.lambda_max)
        occupancy = new(total, shape.occupancy_bytes, dtype=torch.uint8)
        self._put(occupancy[self.capacity :], frozen.occupancy)
        offset = torch.tensor([0] + [own_rows + r * base_rows for r in range(trees - 1)])
        return Arena(
            cells=shape.cells,
            base_cells=shape.base_cells,
            occupancy_cells=shape.occupancy_cells,
            root=0,
            tables=self.tables.to(half) if self.copies and half != torch.float32 else self.tables,
            dense=self.dense.to(half, copy=True) if self.copies else self.dense,
            dense_offset=offset.to(self.device),
            dense_grids=self.dense_grids,
            level=new(total),
            parent=new(total),
            children=new(total, 8),
            treelet=new(total),
            lambda_max=lambda_max,
            occupancy=occupancy,
            blocks=occupied_blocks(occupancy, shape.occupancy_cells),
            any_occupied=new(total, dtype=torch.uint8),
            top_level=new(trees),
            top_xyz=new(trees, 3, dtype=torch.int64),
            above=new(trees),
        )

    @property
    def occupancy(self) -> Tensor:
        """uint8 [S, O^3/8], bits of all nodes."""
        return self.arena.occupancy

    @property
    def lambda_max(self) -> Tensor:
        """float32 [S]."""
        return self.arena.lambda_max

    def relink(self) -> None:
        """Rewrite the arena's links after nodes came or went."""
        links = link(self.keys, self.treelet, self.top_keys)
        self.level, self.arena.root = links.level, links.root
        for name in ("level", "parent", "children", "treelet", "top_level", "top_xyz", "above"):
            self._put(getattr(self.arena, name), getattr(links, name))
        here = np.flatnonzero(self.keys >= 0)
        levels, xyz = decode_keys(self.keys[here])
        tree = self.treelet[here]
        height = levels.astype(np.int64) - links.top_level[tree]
        corner = np.zeros((len(self.keys), 3), np.float32)
        corner[here] = xyz - (links.top_xyz[tree] << height[:, None])
        edge = np.ones(len(self.keys), np.float32)
        edge[here] = np.exp2(-height)
        self._put(self.corner, corner)
        self._put(self.edge, edge)
        self.neighbours = torch.from_numpy(neighbour_slots(self.keys[: self.num_own])).to(self.device)
        self.own_count.fill_(self.num_own)
        self.refresh_emptiness()

    def refresh_emptiness(self) -> None:
        """Set what tells rays where nothing is, blocks and emptiness flags, from the bits of the cells."""
        self.arena.blocks.copy_(occupied_blocks(self.occupancy, self.shape.occupancy_cells))
        if self.device.type == "cpu":
            bits, children = self.occupancy.numpy(), self.arena.children.numpy()
            self._put(self.arena.any_occupied, any_occupied(bits, self.level, children))
            return
        depth = int(self.level.max(initial=0))
        self.arena.any_occupied.copy_(any_occupied_below(self.occupancy, self.arena.level, self.arena.children, depth))

    def publish(self) -> None:
        """Bring the kernels' copies up to the masters."""
        if self.arena.tables is not self.tables:
            self.arena.tables.copy_(self.tables)
        if self.arena.dense is not self.dense:
            own = self.shape.training_dense_rows
            self.arena.dense[own:].copy_(self.dense[own:])
            self.fold()

    def fold(self) -> None:
        """Bring the kernels' copy of the treelet's dense grids, one for all of them, up to the masters."""
        shape = self.shape
        for_device(self.device).fold_dense(
            self.dense[: shape.training_dense_rows], self.arena.dense[: shape.base_rows],
            base_cells=shape.base_cells, grids=shape.num_corrections,
        )  # fmt: skip

    def start_occupancy(self, cells: Bool, prior: float) -> None:
        """Begin with these cells, bool [num_own, O, O, O], each counting `prior` (optical depth per step)."""
        self.prior = np.float32(prior)
        self._put(self.ema[: self.num_own], cells * self.prior)
        self.set_occupied(cells)

    def set_occupied(self, cells: Bool) -> None:
        """Set the bits of the own nodes from bool [num_own, O, O, O] and what follows from them."""
        self._put(self.occupancy[: self.num_own], pack_cells(cells))
        self.refresh_emptiness()

    def occupied(self) -> Bool:
        """Cells of the own nodes, bool [num_own, O, O, O] (z, y, x)."""
        return unpack_cells(self.occupancy[: self.num_own].cpu().numpy(), self.shape.occupancy_cells)

    def check_finite(self, step: int) -> None:
        """NonFiniteError if a feature is NaN or infinite, which a finite loss can still hide."""
        rows = self.shape.training_dense_rows
        for name, values in (("table", self.tables[: self.num_own]), ("base", self.dense[:rows])):
            # the extremes are NaN or infinite if any value is, and take no memory of their own
            if values.numel() and not all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(values)):
                raise NonFiniteError(
                    f"treelet {self.top}: a {name} is not finite after step {step}; the last good state is kept. "
                    "Lower training.lr"
                )

    def local_position(self, slots: Tensor, inside: Tensor) -> Tensor:
        """Positions [M, 3] in the treelet's root cube of points `inside` [M, 3] in [0, 1) of own nodes."""
        low = self.corner[slots.long()]
        # the sum may round up to the node's far face, where its neighbour begins
        upper = torch.nextafter(low + 1.0, torch.zeros_like(low))
        return (torch.minimum(low + inside, upper) * self.edge[slots.long(), None]).contiguous()

    def add_children(self, slots: Int64, octants: Int64, max_level: int) -> int:
        """Give own nodes new children where they have none; as many as there are free slots. Returns how many.

        A child starts from the parent's occupancy in its octant, dilated by one of its cells, and an all-zero table.
        """
        level = self.level[slots]
        fresh = (level < max_level) & (self.arena.children.cpu().numpy()[slots, octants] < 0)
        slots, octants = slots[fresh], octants[fresh]
        room = min(len(slots), self.capacity - self.num_own)
        slots, octants = slots[:room], octants[:room]
        if not room:
            return 0
        new = np.arange(self.num_own, self.num_own + room)
        self.keys[new] = child_keys(self.keys[slots])[np.arange(room), octants]
        o = self.shape.occupancy_cells
        cells = dilate_cells(self.occupied(), self.neighbours.cpu().numpy())
        grown = np.empty((room, o, o, o), np.bool_)
        for k in range(room):
            z, y, x = octant(int(octants[k]), o)
            grown[k] = refined(cells[slots[k] : slots[k] + 1, z, y, x])[0]
        self._put(self.occupancy[self.num_own : self.num_own + room], pack_cells(grown))
        self._put(self.ema[self.num_own : self.num_own + room], grown * self.prior)
        self.num_own += room
        self.relink()
        return room


class Moments:
    """Gradients and Adam moments of the own nodes and dense grids."""

    def __init__(self, state: TrainingState):
        shape = state.shape
        self.gradients = Gradients(
            state.capacity, shape.table_size, shape.training_dense_rows, shape.features, state.device
        )
        self.first_tables = reserved(*self.gradients.tables.shape, device=state.device)
        self.second_tables = reserved(*self.gradients.tables.shape, device=state.device)
        self.first_dense = torch.zeros_like(self.gradients.dense)
        self.second_dense = torch.zeros_like(self.gradients.dense)

    def groups(self, state: TrainingState) -> list[tuple[tuple[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor | None]]:
        """((master, gradient, first, second, marks), half copy or None) of tables and dense grids, as rows of whole
        vertex blocks."""
        width = VERTEX_BLOCK * state.shape.features
        g = self.gradients
        rows = state.shape.training_dense_rows
        halves = state.arena.tables is not state.tables
        return [
            (
                (
                    state.tables[: state.capacity].view(-1, width),
                    g.tables.view(-1, width),
                    self.first_tables.view(-1, width),
                    self.second_tables.view(-1, width),
                    g.mark_tables.view(-1),
                ),
                state.arena.tables[: state.capacity].view(-1, width) if halves else None,
            ),
            (
                (
                    state.dense[:rows].view(-1, width),
                    g.dense.view(-1, width),
                    self.first_dense.view(-1, width),
                    self.second_dense.view(-1, width),
                    g.mark_dense.view(-1),
                ),
                None,
            ),
        ]
