"""What the kernels work on: resident nodes, rays and packed samples.

Legend
    S  slots (resident nodes)      R  resident treelets        Q  rays            M  samples
    T  rows of a node's table      F  features                 N  cells per node edge
    O  occupancy cells per edge    D  length of the dense buffer in rows
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

_LINE = 64
"""Bytes of a cache line."""

VERTEX_BLOCK = 8
"""Vertices of a 2x2x2 block. They stand side by side in a hashed table, and gradients are marked block by block."""


@dataclass(kw_only=True)
class Arena:
    """Resident nodes as flat arrays linked by slot numbers.

    The tensors are views of memory that the owner (a trainer or a node cache) fills; kernels never allocate or free
    slots. All live on one device.
    """

    cells: int
    """N, cells per node edge (power of two)."""
    base_cells: int
    """Cells per edge of the finest dense grid of a treelet, N/2."""
    occupancy_cells: int
    """O, occupancy cells per node edge, N/4."""
    root: int
    """Slot of the octree's root."""
    tables: Tensor
    """float32 [S, T, F]: residual features of each node, hashed (or dense where (N+1)^3 <= T). float16 on CUDA."""
    dense: Tensor
    """float32 [D, F]: the treelets' dense grids one after another. float16 on CUDA."""
    dense_offset: Tensor
    """int64 [R]: first row of a treelet's dense grids in `dense`."""
    dense_grids: Tensor
    """int32 [R]: how many nested dense grids the treelet has: 1 (its base) or, while it trains, base plus corrections
    with N/2, N/4, ... cells. Grid g starts `dense_grid_rows` rows behind grid g-1."""
    level: Tensor
    """int32 [S]: level of the node."""
    parent: Tensor
    """int32 [S]: slot of the parent *inside the same treelet*; -1 at a treelet root."""
    children: Tensor
    """int32 [S, 8]: slot of each resident child in any treelet (child index dx + 2 dy + 4 dz), or -1."""
    treelet: Tensor
    """int32 [S]: treelet row of the node."""
    lambda_max: Tensor
    """float32 [S]: largest wanted level at which the node was trained; drawing clamps to it."""
    occupancy: Tensor
    """uint8 [S, O^3/8]: bits, cell (cx, cy, cz) is bit (cz*O + cy)*O + cx, least significant bit first."""
    blocks: Tensor
    """uint8 [S, ...]: bits of blocks of cells as `occupied_blocks` gives them; whoever sets cells sets these too."""
    any_occupied: Tensor
    """uint8 [S]: whether the node or anything below it has an occupied cell."""
    top_level: Tensor
    """int32 [R]: level of the treelet's root node."""
    top_xyz: Tensor
    """int64 [R, 3]: cell of the treelet's root node at its level."""
    above: Tensor
    """int32 [R]: slot of the node that holds the treelet's root as a child (in the treelet above), or -1."""

    @property
    def features(self) -> int:
        return int(self.tables.shape[2])

    @property
    def table_size(self) -> int:
        return int(self.tables.shape[1])

    @property
    def device(self) -> torch.device:
        return self.tables.device


@dataclass(frozen=True, kw_only=True)
class Rays:
    """A packet of rays in unit-cube coordinates: position(t) = origin + t * direction, t in world units."""

    origins: Tensor
    """float64 [Q, 3]: camera centres; the root cube is [0, 1)^3."""
    directions: Tensor
    """float64 [Q, 3]: unit world directions divided by the root cube's edge."""
    footprint: Tensor
    """float64 [Q]: edge of the pixel's back-projection at distance 1, 2^p / f."""
    offset: Tensor
    """float64 [Q]: shift of the step lattice in steps, in [0, 1); 0.5 when rendering, random when training."""


@dataclass(frozen=True, kw_only=True)
class MarchSettings:
    """Constants of one march."""

    near: float
    """Where the step lattice starts, world units."""
    step: float
    """C: step length in footprints, so that c = C * footprint."""
    gsd_root: float
    """GSD of the octree's root, world units."""
    lod_bias: float
    """Added to the wanted level."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Packed samples of a packet of rays, ray by ray, front to back."""

    ray_start: Tensor
    """int64 [Q+1]: samples of ray q are ray_start[q] .. ray_start[q+1]-1."""
    ray: Tensor
    """int32 [M]: ray of the sample."""
    t: Tensor
    """float32 [M]: distance of the sample's middle, world units."""
    dt: Tensor
    """float32 [M]: its length, world units; where samples were thinned, summed over those it stands for."""
    wanted: Tensor
    """float32 [M]: wanted level, not clamped."""
    slot: Tensor
    """int32 [M]: finest node that draws the sample."""
    beta: Tensor
    """float32 [M]: weight of that node's residual."""
    position: Tensor
    """float32 [M, 3]: in the cube of the node's treelet root, [0, 1). Inside the node `slot` even after rounding, since
    `encode` takes the place within a node from the position alone."""
    blend: Tensor
    """float32 [M]: weight of this treelet's opacity; the one above has the rest (`hand_over`)."""
    slot_above: Tensor
    """int32 [M]: node of the treelet above that draws the rest, or -1 where blend is 1 or that one is empty there."""
    position_above: Tensor
    """float32 [M, 3]: position in the cube of that node's treelet root."""
    next_step: Tensor
    """int64 [Q]: lattice step at which the ray goes on; -1 when it has left the root cube."""

    @property
    def count(self) -> int:
        return int(self.t.shape[0])


@dataclass(frozen=True, kw_only=True)
class PackedSamples:
    """Samples in buffers of fixed capacity, counted on the device: nothing has to wait for the host.

    Rows behind `count` hold what was there before (zeros at first), so that their indices are always valid. Legend:
    C rows for samples, A rows for second evaluations, Q rays.
    """

    ray_start: Tensor
    """int64 [Q]: samples of ray q are ray_start[q] .. ray_start[q] + ray_count[q] - 1; the sum of the counts before."""
    ray_count: Tensor
    """int32 [Q]: 0 where the ray has no samples, was not in use or did not fit."""
    ray_kept: Tensor
    """uint8 [Q]: 0 where the ray was not in use or did not fit the capacity (nor does any ray behind such a one)."""
    next_step: Tensor
    """int64 [Q]: lattice step at which the ray goes on; -1 when it has left the root cube or was not in use, and the
    step it should have started from where it did not fit."""
    count: Tensor
    """int32 [1]: rows in use."""
    demand: Tensor
    """int32 [1]: samples of all rays in use, those that did not fit too."""
    ray: Tensor
    """int32 [C]. This and the columns up to `position_above` as in `Samples`."""
    t: Tensor
    """float32 [C]."""
    dt: Tensor
    """float32 [C]."""
    wanted: Tensor
    """float32 [C]."""
    slot: Tensor
    """int32 [C]."""
    beta: Tensor
    """float32 [C]."""
    position: Tensor
    """float32 [C, 3]."""
    blend: Tensor
    """float32 [C]: 1 also where the second evaluation did not fit."""
    slot_above: Tensor
    """int32 [C]: -1 also where the second evaluation did not fit."""
    position_above: Tensor
    """float32 [C, 3]: of use only where slot_above >= 0."""
    above_count: Tensor
    """int32 [1]: second evaluations in use."""
    above_sample: Tensor
    """int32 [A]: the sample that needs it, each at most once; in any order."""
    above_slot: Tensor
    """int32 [A]: its node in the treelet above."""
    above_position: Tensor
    """float32 [A, 3]: its position in the cube of that node's treelet root."""

    @property
    def capacity(self) -> int:
        return int(self.t.shape[0])

    @property
    def capacity_above(self) -> int:
        return int(self.above_sample.shape[0])

    @classmethod
    def allocate(cls, *, rays: int, capacity: int, capacity_above: int, device: torch.device | None = None) -> Self:
        """Buffers of zeros."""

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        whole, small = torch.int64, torch.int32
        return cls(
            ray_start=zeros(rays, dtype=whole),
            ray_count=zeros(rays, dtype=small),
            ray_kept=zeros(rays, dtype=torch.uint8),
            next_step=zeros(rays, dtype=whole),
            count=zeros(1, dtype=small),
            demand=zeros(1, dtype=small),
            ray=zeros(capacity, dtype=small),
            t=zeros(capacity),
            dt=zeros(capacity),
            wanted=zeros(capacity),
            slot=zeros(capacity, dtype=small),
            beta=zeros(capacity),
            position=zeros(capacity, 3),
            blend=zeros(capacity),
            slot_above=zeros(capacity, dtype=small),
            position_above=zeros(capacity, 3),
            above_count=zeros(1, dtype=small),
            above_sample=zeros(capacity_above, dtype=small),
            above_slot=zeros(capacity_above, dtype=small),
            above_position=zeros(capacity_above, 3),
        )


def adam_scalars(step: int, rate: float, *, beta1: float = 0.9, beta2: float = 0.99) -> tuple[float, float, float]:
    """(rate, bias correction of the first moment, of the second) of the step-th update, counted from 1: what `adam`
    takes as one device tensor."""
    return rate, 1.0 - beta1**step, 1.0 - beta2**step


def dense_grid_rows(cells: int) -> int:
    """Rows that a dense grid with `cells` cells takes: (cells+1)^3 rounded up to whole vertex blocks."""
    vertices = (cells + 1) ** 3
    return -(-vertices // VERTEX_BLOCK) * VERTEX_BLOCK


def dense_rows(base_cells: int, grids: int) -> int:
    """Rows of `grids` nested dense grids with base_cells, base_cells/2, ... cells."""
    return sum(dense_grid_rows(base_cells >> g) for g in range(grids))


def table_is_dense(cells: int, table_size: int) -> bool:
    """Whether a node's (N+1)^3 vertices fit its table without hashing."""
    return (cells + 1) ** 3 <= table_size


def reserved(*shape: int, device: torch.device | None = None) -> Tensor:
    """float32 zeros that on the processor take memory page by page, when it is written to: room to grow into costs
    nothing before. Begins at a whole cache line."""
    if device is not None and device.type != "cpu":
        return torch.zeros(shape, device=device)
    size = math.prod(shape)
    raw = np.zeros(size + _LINE // 4, np.float32)
    first = -raw.ctypes.data % _LINE // 4
    return torch.from_numpy(raw[first : first + size]).view(shape)


class Gradients:
    """Gradient buffers of the trainable slots and dense rows, with a mark per vertex block that holds any gradient.

    Kept outside autograd: a dense gradient tensor per step would cost more than the step. `adam` clears them.
    """

    def __init__(
        self,
        slots: int,
        table_size: int,
        dense_rows: int,
        features: int,
        device: torch.device | None = None,
    ):
        """Buffers of zeros.

        Args:
            slots: trainable nodes, slots 0 .. slots-1 of the arena. dense_rows: trainable rows at the start of `dense`.
        """
        self.tables = reserved(slots, table_size, features, device=device)
        """float32 [slots, T, F]."""
        self.dense = torch.zeros((dense_rows, features), device=device)
        """float32 [dense_rows, F]."""
        self.mark_tables = torch.zeros((slots, table_size // VERTEX_BLOCK), dtype=torch.uint8, device=device)
        """uint8 [slots, T / 8]."""
        self.mark_dense = torch.zeros(math.ceil(dense_rows / VERTEX_BLOCK), dtype=torch.uint8, device=device)
        """uint8 [ceil(dense_rows / 8)]."""
        self.anchor = torch.zeros((), requires_grad=True, device=device)
        """What makes autograd call the backward pass although no tensor it knows of learns."""
