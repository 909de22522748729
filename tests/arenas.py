"""Random octrees, arenas and rays for the kernels' tests."""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from infnerf_tiles.arrays import Bool, Float64, Int64
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.geometry.node_id import child_keys, encode_keys
from infnerf_tiles.geometry.octree import Octree, cut
from infnerf_tiles.kernels.arena import Arena, Rays, Samples, dense_rows
from infnerf_tiles.kernels.blocks import occupied_blocks

ROOT_KEY = int(encode_keys(0, np.zeros((1, 3), np.int64))[0])


def random_octree(rng: np.random.Generator, depth: int, *, children: float = 3.0) -> Octree:
    """An octree down to `depth` whose nodes have about `children` children each, some none, some all eight."""
    frontier = np.array([ROOT_KEY])
    keys = [frontier]
    for _ in range(depth):
        below = child_keys(frontier)
        share = rng.choice([0.0, children / 8, 1.0], size=(len(frontier), 1), p=[0.2, 0.7, 0.1])
        chosen = below[rng.random(below.shape) < share]
        frontier = chosen if len(chosen) else below[0, :1]  # always reaches the depth
        keys.append(frontier)
    return Octree.from_keys(np.concatenate(keys))


def random_arena(
    rng: np.random.Generator,
    octree: Octree,
    band_levels: Sequence[int] = (0,),
    *,
    shape: FieldShape,
    fill: float = 0.1,
    empty_nodes: float = 0.2,
    max_grids: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Arena:
    """Resident nodes with random contents, in shuffled slots with gaps between them.

    fill: share of occupied cells. empty_nodes: share of nodes without any. max_grids: dense grids per treelet, at most.
    """
    treelets = cut(octree, band_levels)
    n, spare = octree.num_nodes, 3
    slots = n + spare
    slot_of = rng.permutation(slots)[:n]
    key_slot = {int(k): int(s) for k, s in zip(octree.keys, slot_of, strict=True)}

    def linked(rows: Int64) -> Int64:
        return np.where(rows >= 0, slot_of[np.maximum(rows, 0)], -1)

    level = np.full(slots, -1, np.int32)
    level[slot_of] = octree.levels
    children = np.full((slots, 8), -1, np.int32)
    children[slot_of] = linked(octree.children.astype(np.int64))
    any_parent = np.full(slots, -1, np.int32)
    any_parent[slot_of] = linked(octree.parents.astype(np.int64))
    parent = any_parent.copy()
    treelet = np.full(slots, -1, np.int32)
    above = np.full(len(treelets), -1, np.int32)
    for row, one in enumerate(treelets):
        treelet[[key_slot[int(k)] for k in one.keys]] = row
        root = key_slot[one.root.key]
        above[row], parent[root] = any_parent[root], -1
    most = shape.num_corrections if max_grids is None else max_grids
    grids = rng.integers(1, most + 1, len(treelets)).astype(np.int32)
    rows = np.array([dense_rows(shape.base_cells, int(g)) for g in grids])
    o = shape.occupancy_cells
    cells = random_cells(rng, slots, o, fill)
    cells[(rng.random(slots) < empty_nodes) | (level < 0)] = False
    bits = torch.from_numpy(np.packbits(cells.reshape(slots, -1), axis=1, bitorder="little"))
    tables = torch.from_numpy(rng.normal(size=(slots, shape.table_size, shape.features))).to(dtype)
    tables[torch.from_numpy(level < 0)] = torch.nan  # whoever reads a slot without a node shall notice
    return Arena(
        cells=shape.cells,
        base_cells=shape.base_cells,
        occupancy_cells=o,
        root=key_slot[ROOT_KEY],
        tables=tables,
        dense=torch.from_numpy(rng.normal(size=(int(rows.sum()), shape.features))).to(dtype),
        dense_offset=torch.from_numpy(np.cumsum(rows) - rows),
        dense_grids=torch.from_numpy(grids),
        level=torch.from_numpy(level),
        parent=torch.from_numpy(parent),
        children=torch.from_numpy(children),
        treelet=torch.from_numpy(treelet),
        lambda_max=torch.from_numpy((level + rng.uniform(-0.7, 1.5, slots)).astype(np.float32)),
        occupancy=bits,
        blocks=occupied_blocks(bits, o),
        any_occupied=torch.from_numpy(_any_below(np.any(cells, axis=(1, 2, 3)), level, any_parent)),
        top_level=torch.tensor([t.root.level for t in treelets], dtype=torch.int32),
        top_xyz=torch.tensor([[t.root.x, t.root.y, t.root.z] for t in treelets], dtype=torch.int64),
        above=torch.from_numpy(above),
    )


def random_cells(rng: np.random.Generator, count: int, edge: int, fill: float) -> Bool:
    """bool [count, edge, edge, edge]: blocks of cells, so that rays meet both long gaps and long stretches."""
    coarse = rng.random((count, edge // 2, edge // 2, edge // 2)) < fill
    return coarse.repeat(2, axis=1).repeat(2, axis=2).repeat(2, axis=3)


def _any_below(own: Bool, level: np.ndarray, any_parent: np.ndarray) -> np.ndarray:
    result = own.astype(np.uint8)
    for slot in sorted(range(len(level)), key=lambda s: -int(level[s])):
        if any_parent[slot] >= 0:
            result[any_parent[slot]] |= result[slot]
    return result


def random_rays(rng: np.random.Generator, count: int, *, edge: float = 50.0, footprint: float = 0.01) -> Rays:
    """Rays around a root cube `edge` world units wide: from inside and outside, some past it, some along the axes."""
    origins = rng.uniform(-0.6, 1.6, (count, 3))
    directions = rng.normal(size=(count, 3))
    inwards = rng.random(count) < 0.7
    directions[inwards] = rng.uniform(0.0, 1.0, (count, 3))[inwards] - origins[inwards]
    along = rng.random(count) < 0.2
    directions[along] = np.eye(3)[rng.integers(0, 3, count)][along] * rng.choice([-1.0, 1.0], (count, 1))[along]
    origins[along] = rng.uniform(0.0, 1.0, (count, 3))[along]
    return make_rays(
        origins,
        directions,
        edge=edge,
        footprint=footprint * rng.uniform(0.5, 2.0, count),
        offset=rng.uniform(0.0, 1.0, count),
    )


def make_rays(
    origins: Float64, directions: Float64, *, edge: float, footprint: Float64 | float, offset: Float64 | float = 0.5
) -> Rays:
    """Rays from origins [Q, 3] in the unit cube along directions [Q, 3] of any length."""
    num = len(origins)
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True) if num else directions
    return Rays(
        origins=torch.from_numpy(np.array(origins, np.float64)),
        directions=torch.from_numpy(unit / edge),
        footprint=torch.from_numpy(np.array(np.broadcast_to(footprint, num), np.float64)),
        offset=torch.from_numpy(np.array(np.broadcast_to(offset, num), np.float64)),
    )


def random_points(rng: np.random.Generator, arena: Arena, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Position [M, 3], slot [M] and beta [M] of samples in any resident node, some on its lower faces and vertices."""
    resident = np.flatnonzero(arena.level.numpy() >= 0)
    slot = rng.choice(resident, count)
    corner, edge = node_corners(arena)
    inside = rng.uniform(0.0, 1.0, (count, 3))
    on_grid = np.floor(inside * arena.cells) / arena.cells
    pick = rng.random(count)
    inside = np.where((pick < 0.1)[:, None], on_grid, inside)
    inside[pick > 0.9, 0] = 0.0
    position = (corner[slot] + inside * edge[slot, None]).astype(np.float32)
    highest = np.nextafter((corner[slot] + edge[slot, None]).astype(np.float32), np.float32(0.0))
    beta = np.where(rng.random(count) < 0.3, 1.0, rng.uniform(0.0, 1.0, count)).astype(np.float32)
    at_most = np.minimum(position, highest)
    return torch.from_numpy(at_most), torch.from_numpy(slot.astype(np.int32)), torch.from_numpy(beta)


def node_corners(arena: Arena) -> tuple[Float64, Float64]:
    """Lower corner [S, 3] and edge [S] of every node in the cube of its treelet root, by walking down the children."""
    slots = arena.level.shape[0]
    corner, edge = np.zeros((slots, 3)), np.ones(slots)
    children, treelet = arena.children.numpy(), arena.treelet.numpy()
    pending = [arena.root]
    while pending:
        slot = pending.pop()
        for c, below in enumerate(children[slot]):
            if below < 0:
                continue
            pending.append(int(below))
            if treelet[below] == treelet[slot]:
                edge[below] = edge[slot] / 2
                corner[below] = corner[slot] + edge[below] * np.array([c & 1, (c >> 1) & 1, c >> 2])
    return corner, edge


def full_octree(depth: int) -> Octree:
    """Every node down to `depth`."""
    cells = np.stack(np.unravel_index(np.arange(8**depth), (2**depth,) * 3), axis=1)
    return Octree.from_keys(encode_keys(depth, cells))


def chain_octree(level: int, point: Float64) -> Octree:
    """One node per level down to `level`, all around a point of the unit cube."""
    cells = np.floor(point * float(1 << level)).astype(np.int64)
    return Octree.from_keys(encode_keys(level, cells[None]))


def differing(a: Samples, b: Samples) -> list[str]:
    """Names of the columns that are not bit-equal."""
    names = [field.name for field in fields(Samples)]
    return [name for name in names if not torch.equal(getattr(a, name), getattr(b, name))]
