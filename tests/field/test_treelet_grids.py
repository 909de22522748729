"""Dense grids of a treelet: nested sums and bases that carry on the field above."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from arenas import full_octree, random_arena
from torch import Tensor

from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.field.treelet import base_from_above, fold_corrections, grid_vertices, interpolate_dense
from infnerf_tiles.kernels import cpu
from infnerf_tiles.kernels.arena import Arena, dense_grid_rows

SHAPES = [
    FieldShape(cells=16, table_size=8192, features=4),
    FieldShape(cells=32, table_size=2048, features=4),
    FieldShape(cells=32, table_size=64, features=8),
]
KINDS = pytest.mark.parametrize("shape", SHAPES, ids=["dense", "hashed", "collisions"])


def points_in_cube(rng: np.random.Generator, count: int) -> Tensor:
    """float32 [M, 3] in [0, 1): anywhere, in the cube's faces, edges and corners, and in a coarse grid's faces."""
    points = rng.random((count, 3))
    special = rng.choice([0.0, 0.25, 0.5, 1 - 2.0**-24], (count, 3))
    return torch.from_numpy(np.where(rng.random((count, 3)) < 0.3, special, points)).float()


def test_vertices_run_x_first() -> None:
    vertices = grid_vertices(4)
    assert vertices.shape == (125, 3)
    np.testing.assert_array_equal(vertices[(3 * 5 + 1) * 5 + 2], [0.5, 0.25, 0.75])


def test_interpolation_passes_through_the_vertices_and_is_linear_between(rng: np.random.Generator) -> None:
    grid = torch.from_numpy(rng.normal(size=(9**3, 4)))
    torch.testing.assert_close(interpolate_dense(grid, 8, torch.from_numpy(grid_vertices(8))), grid)
    corners = grid_vertices(8).astype(np.float64)
    plane = torch.from_numpy(corners @ rng.normal(size=(3, 4)) + 0.5)
    points = rng.random((200, 3))
    points[:20] = rng.choice([0.0, 1.0], (20, 3))
    expected = plane[0] + torch.from_numpy(points) @ (plane[[1, 9, 81]] - plane[0]) * 8
    torch.testing.assert_close(interpolate_dense(plane, 8, torch.from_numpy(points)), expected, atol=1e-12, rtol=0.0)


@KINDS
def test_folding_changes_nothing(rng: np.random.Generator, shape: FieldShape) -> None:
    for grids in range(1, shape.num_corrections + 1):
        dense = torch.from_numpy(rng.normal(size=(shape.training_dense_rows, shape.features))).float()
        base = fold_corrections(dense, shape, grids)
        assert base.shape == (shape.base_rows, shape.features)
        assert not base[(shape.base_cells + 1) ** 3 :].any()
        points = points_in_cube(rng, 1000)
        expected = torch.zeros(1000, shape.features, dtype=torch.float64)
        first, cells = 0, shape.base_cells
        for _ in range(grids):
            expected += interpolate_dense(dense[first : first + (cells + 1) ** 3].double(), cells, points.double())
            first, cells = first + dense_grid_rows(cells), cells // 2
        # up to 4 grids with values about 1, float32
        folded = interpolate_dense(base, shape.base_cells, points)
        torch.testing.assert_close(folded.double(), expected, atol=5e-6, rtol=0.0)


def children_of_leaves(arena: Arena, level: int) -> list[tuple[int, tuple[int, int, int]]]:
    """(slot, cell of a child at level + 1) for every octant of every node of a level."""
    pending = [(arena.root, (0, 0, 0))]
    found = []
    while pending:
        slot, (x, y, z) = pending.pop()
        for c in range(8):
            cell = (2 * x + (c & 1), 2 * y + ((c >> 1) & 1), 2 * z + (c >> 2))
            if int(arena.level[slot]) == level:
                found.append((slot, cell))
            elif arena.children[slot, c] >= 0:
                pending.append((int(arena.children[slot, c]), cell))
    return found


def local_to(arena: Arena, tree: int, level: int, cell: tuple[int, int, int], points: Tensor) -> Tensor:
    """Points [M, 3] in the cube of node (level, cell) as positions float64 [M, 3] in the cube of a treelet's root."""
    scale = 2.0 ** (int(arena.top_level[tree]) - level)
    return (points.double() + torch.tensor(cell)) * scale - arena.top_xyz[tree]


@KINDS
@pytest.mark.parametrize("bands", [(0,), (0, 1), (0, 2)])
def test_a_base_is_the_field_above(rng: np.random.Generator, shape: FieldShape, bands: tuple[int, ...]) -> None:
    arena = random_arena(rng, full_octree(2), bands, shape=shape)
    choices = children_of_leaves(arena, 2)
    for k in rng.choice(len(choices), 6, replace=False):
        slot, cell = choices[k]
        base = base_from_above(arena, cell, slot)
        assert base.shape == (shape.base_rows, shape.features)
        assert not base[(shape.base_cells + 1) ** 3 :].any()
        points = points_in_cube(rng, 1000)
        position = local_to(arena, int(arena.treelet[slot]), 3, cell, points).float()
        # float32 may round onto the face, which is the next node's
        position = torch.minimum(position, torch.nextafter(
            local_to(arena, int(arena.treelet[slot]), 3, cell, torch.ones(1, 3)).float(), torch.tensor(0.0)
        ))  # fmt: skip
        above = torch.empty(1000, shape.features)
        cpu.encode_into(position, torch.full((1000,), slot, dtype=torch.int32), torch.ones(1000), arena, above)
        carried = interpolate_dense(base, shape.base_cells, points)
        # one float32 step of the position is up to 1 / 2^24 * 128 cells of the finest grid, values differ by a few
        torch.testing.assert_close(carried, above, atol=1e-4, rtol=0.0)


@KINDS
def test_a_new_treelet_shows_the_one_above(rng: np.random.Generator, shape: FieldShape) -> None:
    """The whole way: bases in the arena, own tables zero, evaluated by the kernel at the same places."""
    arena = random_arena(rng, full_octree(2), (0, 2), shape=shape, max_grids=1)
    own = arena.level == 2
    tables = arena.tables.clone()
    tables[own] = 0.0
    arena = replace(arena, tables=tables)
    for slot in rng.choice(torch.nonzero(own).squeeze(1).numpy(), 10, replace=False).tolist():
        tree = int(arena.treelet[slot])
        cell = tuple(int(c) for c in arena.top_xyz[tree])
        slot_above = int(arena.above[tree])
        first = int(arena.dense_offset[tree])
        arena.dense[first : first + shape.base_rows] = base_from_above(arena, cell, slot_above)  # type: ignore[arg-type]
        points = torch.from_numpy(rng.random((500, 3))).float()
        position_above = local_to(arena, int(arena.treelet[slot_above]), 2, cell, points).float()  # type: ignore[arg-type]
        shown, above = torch.empty(500, shape.features), torch.empty(500, shape.features)
        for position, node, out in ((points, slot, shown), (position_above, slot_above, above)):
            cpu.encode_into(position, torch.full((500,), node, dtype=torch.int32), torch.ones(500), arena, out)
        torch.testing.assert_close(shown, above, atol=1e-4, rtol=0.0)
